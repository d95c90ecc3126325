//! The text of a policy, and errors that point into it.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use callgate_json::{in_words, meant, syntax, without_place};
use jsonc_parser::ast::Value;
use jsonc_parser::common::Ranged;

/// A policy's text and where it came from.
#[derive(Debug, Clone)]
pub struct Source {
    /// The file's name, as it was given.
    pub path: PathBuf,
    /// Its content.
    pub text: String,
}

/// Something in a policy is wrong. Its `Display` shows the place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyError {
    path: PathBuf,
    text: String,
    place: Option<Range<usize>>,
    message: String,
    hint: Option<String>,
}

impl PolicyError {
    /// An error about the whole of a file: it cannot be read, say.
    pub fn of_file(path: &Path, message: impl Into<String>, hint: Option<String>) -> Self {
        Self { path: path.to_owned(), text: String::new(), place: None, message: message.into(), hint }
    }

    /// What is wrong.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Line and column, both from 1, if it has a place.
    pub fn line_and_column(&self) -> Option<(usize, usize)> {
        let before = &self.text[..self.place.as_ref()?.start];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Some((before.matches('\n').count() + 1, before[line_start..].chars().count() + 1))
    }

    /// The same, where the text is the part of `whole` that begins at `start`.
    #[must_use]
    pub fn within(mut self, whole: &Source, start: usize) -> Self {
        self.place = Some(self.place.map_or(start..start, |place| place.start + start..place.end + start));
        self.text.clone_from(&whole.text);
        self
    }

    /// The message with file, line, column, a caret under the place, and the hint.
    pub fn render(&self, colour: bool) -> String {
        let name = self.path.display().to_string();
        let Some(place) = &self.place else {
            let hint = self.hint.as_ref().map(|hint| format!("\nhelp: {hint}")).unwrap_or_default();
            return format!("error: {name}: {}{hint}", self.message);
        };
        let snippet =
            Snippet::source(self.text.as_str()).path(name).annotation(AnnotationKind::Primary.span(place.clone()));
        let mut group = Level::ERROR.primary_title(self.message.as_str()).element(snippet);
        if let Some(hint) = &self.hint {
            group = group.element(Level::HELP.message(hint.as_str()));
        }
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        renderer.render(&[group])
    }
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for PolicyError {}

impl Source {
    /// An error about the value that a JSON Pointer (RFC 6901) leads to, or the last one on the way that is there.
    pub fn error_at(&self, pointer: &str, message: impl Into<String>, hint: Option<String>) -> PolicyError {
        self.error(self.find(pointer, false), message, hint)
    }

    /// The same about a key instead of its value.
    pub fn error_at_key(&self, pointer: &str, message: impl Into<String>, hint: Option<String>) -> PolicyError {
        self.error(self.find(pointer, true), message, hint)
    }

    /// An error that serde or a plugin found, in serde's words, which are put in those of JSON here: an unknown key, or one that
    /// is there twice, is shown itself instead of its value.
    pub fn mistake(&self, pointer: &str, message: impl Into<String>, hint: Option<String>) -> PolicyError {
        let message = message.into();
        let about_key = message.contains("unknown field `") || message.contains("duplicate field `");
        self.error(self.find(pointer, about_key), in_words(&message), hint.or_else(|| meant(&message)))
    }

    /// An error of `serde_json`'s: the text is no JSON.
    pub fn no_json(&self, error: &serde_json::Error) -> PolicyError {
        let at = self.byte(error.line(), error.column());
        let (message, hint) = syntax(&self.text, at, &without_place(error));
        self.error(Some(at..at + self.width(at)), message, hint)
    }

    /// An error about a byte of the text.
    pub fn error_at_byte(&self, at: usize, message: impl Into<String>, hint: Option<String>) -> PolicyError {
        let width = self.text[at..].chars().next().map_or(0, char::len_utf8);
        self.error(Some(at..at + width), message, hint)
    }

    /// Where a line and column are, both from 1, the column in bytes.
    fn byte(&self, line: usize, column: usize) -> usize {
        let start: usize = self.text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
        self.text.floor_char_boundary((start + column.saturating_sub(1)).min(self.text.len()))
    }

    /// How many bytes a caret stands under.
    fn width(&self, at: usize) -> usize {
        self.text[at..].chars().next().filter(|c| *c != '\n').map_or(0, char::len_utf8)
    }

    fn error(&self, place: Option<Range<usize>>, message: impl Into<String>, hint: Option<String>) -> PolicyError {
        // The first line of a value is enough to see which one is meant.
        let place = place.map(|place| {
            let first = self.text[place.clone()].find('\n').map_or(place.end, |length| place.start + length);
            place.start..first
        });
        PolicyError { path: self.path.clone(), text: self.text.clone(), place, message: message.into(), hint }
    }

    fn find(&self, pointer: &str, want_key: bool) -> Option<Range<usize>> {
        let parsed = jsonc_parser::parse_to_ast(&self.text, &Default::default(), &Default::default()).ok()?;
        let mut value = parsed.value.as_ref()?;
        let mut range = bytes(value);
        for segment in pointer.split('/').skip(1) {
            let segment = segment.replace("~1", "/").replace("~0", "~");
            match value {
                Value::Object(object) => {
                    // With a key twice, the second one is the mistake.
                    let Some(property) = object.properties.iter().rev().find(|p| p.name.as_str() == segment) else {
                        break;
                    };
                    value = &property.value;
                    range =
                        if want_key { property.name.range().start..property.name.range().end } else { bytes(value) };
                }
                Value::Array(array) => {
                    let Some(element) = segment.parse().ok().and_then(|n: usize| array.elements.get(n)) else { break };
                    value = element;
                    range = bytes(value);
                }
                _ => break,
            }
        }
        Some(range)
    }
}

fn bytes(value: &Value<'_>) -> Range<usize> {
    let range = value.range();
    range.start..range.end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source { path: "policy.json".into(), text: text.to_owned() }
    }

    #[test]
    fn an_error_shows_file_line_column_and_caret() {
        let source = source("{\n  \"plugins\": [{\"name\": \"x\", \"deadline_ms\": 0}]\n}\n");
        let error = source.error_at("/plugins/0/deadline_ms", "must be at least 1", Some("write 1000".into()));
        let text = error.to_string();
        assert!(text.contains("policy.json:2:44"), "{text}");
        assert!(text.lines().any(|line| line.trim_end().ends_with('^')), "{text}");
        assert!(text.contains("write 1000"), "{text}");
    }

    #[test]
    fn a_pointer_to_nothing_leads_to_the_last_value_that_is_there() {
        let error = source(r#"{"a": {"b": 1}}"#).error_at("/a/c/d", "m", None);
        assert_eq!(error.line_and_column(), Some((1, 7)));
    }

    /// serde_json reads the policy, and another parser finds places in it: that one has to take whatever the first takes.
    #[test]
    fn whatever_is_json_has_places() {
        for value in [
            r#""\u0000\ud83d\ude00\/\b\f\n\r\t\\\"""#,
            "-0.0e-0",
            "1E+2",
            "123456789012345678901234567890",
            "\"\u{7f}\u{2028}\u{fffd}\u{10ffff}\"",
            "[[],{},null,true,false]",
            "\t{\r\n\"\" : \"\"} ",
        ] {
            let text = format!("{{\"k\": {value}}}");
            serde_json::from_str::<serde_json::Value>(&text).unwrap();
            let error = source(&text).error_at("/k", "m", None);
            let white = value.len() - value.trim_start().len();
            assert_eq!(error.line_and_column(), Some((1, 7 + white)), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_place_in_any_text_can_be_shown(text: String, pointer in "(/[a-z0-9~]{0,3}){0,4}", line: u8, column: u8) {
            let source = source(&text);
            source.error_at(&pointer, "m", None).render(true);
            source.error_at_key(&pointer, "m", None).render(false);
            let at = source.byte(line.into(), column.into());
            source.error_at_byte(at, "m", None).render(false);
            if let Err(error) = serde_json::from_str::<serde_json::Value>(&text) {
                source.no_json(&error).render(false);
            }
        }
    }
}
