//! Text that plugins wrote, made fit for logs and terminals.

use std::fmt::Write;

/// At most `limit` bytes of `text`, with everything escaped that could break out of a line or repaint a terminal.
pub(super) fn clean(mut text: String, limit: usize) -> String {
    if text.len() > limit {
        text.truncate(text.floor_char_boundary(limit));
        text.push('…');
    }
    if !text.contains(unprintable) {
        return text;
    }
    let mut clean = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if unprintable(character) {
            // Writing to a string cannot fail.
            let _ = write!(clean, "{}", character.escape_default());
        } else {
            clean.push(character);
        }
    }
    clean
}

/// Controls, and the marks that change the direction of text or end a line.
fn unprintable(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::clean;

    #[test]
    fn a_line_stays_a_line_and_a_terminal_is_not_repainted() {
        assert_eq!(clean("a\nb\x1b[2J\u{9b}\u{202e}c".into(), 100), r"a\nb\u{1b}[2J\u{9b}\u{202e}c");
        assert_eq!(clean("wäre erlaubt".into(), 100), "wäre erlaubt");
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        assert_eq!(clean("ää".into(), 3), "ä…");
        assert_eq!(clean("ab".into(), 2), "ab");
    }
}
