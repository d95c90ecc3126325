//! Many globs at once.

use std::collections::HashMap;

use glob_match::glob_match;

/// How many bytes a piece has.
const PIECE: usize = 4;
/// So many are tried one after the other.
const FEW: usize = 4;

/// A set of globs, compiled: a text is compared only with those that have a certain piece of it.
#[derive(Debug, Default)]
pub(crate) struct Globs {
    /// By a piece that every text which one of them matches has. Sorted.
    by_piece: Vec<([u8; PIECE], Vec<String>)>,
    /// Those that have no such piece, or are few.
    others: Vec<String>,
}

impl Globs {
    /// Compiles them.
    pub(crate) fn new(globs: Vec<String>) -> Self {
        if globs.len() <= FEW {
            return Self { by_piece: Vec::new(), others: globs };
        }
        let pieces: Vec<Vec<[u8; PIECE]>> = globs.iter().map(|glob| pieces(glob)).collect();
        let mut common: HashMap<[u8; PIECE], usize> = HashMap::new();
        for piece in pieces.iter().flatten() {
            *common.entry(*piece).or_default() += 1;
        }
        let mut by_piece: HashMap<[u8; PIECE], Vec<String>> = HashMap::new();
        let mut others = Vec::new();
        for (glob, pieces) in globs.into_iter().zip(&pieces) {
            match pieces.iter().min_by_key(|piece| common.get(*piece)) {
                Some(rarest) => by_piece.entry(*rarest).or_default().push(glob),
                None => others.push(glob),
            }
        }
        let mut by_piece: Vec<_> = by_piece.into_iter().collect();
        by_piece.sort_unstable();
        Self { by_piece, others }
    }

    /// Whether one of them matches.
    pub(crate) fn has(&self, text: &str) -> bool {
        let matches = |glob: &String| glob_match(glob, text);
        self.others.iter().any(matches)
            || !self.by_piece.is_empty()
                && text.as_bytes().windows(PIECE).any(|piece| {
                    let found = self.by_piece.binary_search_by(|(known, _)| known.as_slice().cmp(piece));
                    found.is_ok_and(|at| self.by_piece[at].1.iter().any(matches))
                })
    }
}

/// Pieces that every text has which the glob matches.
fn pieces(glob: &str) -> Vec<[u8; PIECE]> {
    let mut runs: Vec<Vec<u8>> = vec![Vec::new()];
    let mut rest = glob.bytes().peekable();
    if rest.peek() == Some(&b'!') {
        return Vec::new(); // what it does not match
    }
    while let Some(byte) = rest.next() {
        let literal = match byte {
            b'*' => {
                let crosses = rest.peek() == Some(&b'*');
                while rest.next_if_eq(&b'*').is_some() {}
                if crosses {
                    // A slash beside it may be matched by nothing.
                    rest.next_if_eq(&b'/');
                    if let Some(run) = runs.last_mut().filter(|run| run.ends_with(b"/")) {
                        run.pop();
                    }
                }
                None
            }
            b'?' => None,
            // Of what has alternatives nothing is certain, nor of what comes after it: it is not read to its end here.
            b'[' | b'{' => break,
            b'\\' => rest.next(),
            byte => Some(byte),
        };
        match (literal, runs.last_mut()) {
            (Some(byte), Some(run)) => run.push(byte),
            _ => runs.push(Vec::new()),
        }
    }
    runs.iter().flat_map(|run| run.windows(PIECE)).filter_map(|piece| piece.try_into().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_compared_with_few_of_many() {
        let globs = Globs::new((0..100).map(|n| format!("/opt/*/bin/tool-{n}-*")).collect());
        assert!(globs.others.is_empty());
        assert!(globs.by_piece.iter().all(|(_, globs)| globs.len() < 20), "{:?}", globs.by_piece);
    }

    fn any_glob() -> impl proptest::strategy::Strategy<Value = String> {
        const PARTS: &[&str] =
            &["a", "b", "/", "*", "**", "?", "[ab]", "{a,b/}", "\\*", "!", "abc", "/**/", "tool", "["];
        let part = proptest::sample::select(PARTS);
        proptest::strategy::Strategy::prop_map(proptest::collection::vec(part, 0..8), |parts| parts.concat())
    }

    proptest::proptest! {
        #[test]
        fn together_they_match_what_one_of_them_matches(
            globs in proptest::collection::vec(any_glob(), 0..12),
            text in "(a|b|/|\\*|abc|tool|!){0,8}",
        ) {
            let expected = globs.iter().any(|glob| glob_match(glob, &text));
            proptest::prop_assert_eq!(Globs::new(globs).has(&text), expected);
        }
    }
}
