//! serde speaks of Rust's types, and of itself. Whoever writes JSON has lists, objects, keys and numbers.

/// A message in the words of JSON, from one in serde's; one that is not serde's stays as it is.
pub fn in_words(message: &str) -> String {
    const BEGINNINGS: [&str; 7] = [
        "unknown field `",
        "unknown variant `",
        "missing field `",
        "duplicate field `",
        "invalid type: ",
        "invalid value: ",
        "invalid length ",
    ];
    // Somebody may have said first whose mistake it is.
    let found = BEGINNINGS.iter().filter_map(|begins| Some((message.find(begins)?, *begins))).min();
    let Some((at, begins)) = found else { return message.to_owned() };
    let (before, rest) = (&message[..at], &message[at + begins.len()..]);
    let translated = match begins {
        "unknown field `" => rest.split_once("`, ").map(|(key, expected)| match names(expected) {
            Some(names) => format!("there is no key {key:?} here, but {names}"),
            None => format!("there is no key {key:?} here"),
        }),
        "unknown variant `" => rest.split_once("`, ").map(|(word, expected)| match names(expected) {
            Some(names) => format!("{word:?} is not one of the words {names}"),
            None => format!("{word:?} is not one of the words that can stand here"),
        }),
        "missing field `" => rest.split_once('`').map(|(key, _)| format!("the key {key:?} is missing")),
        "duplicate field `" => rest.split_once('`').map(|(key, _)| format!("the key {key:?} is there twice")),
        _ => rest.rsplit_once(", expected ").map(|(found, expected)| {
            let found = if begins == "invalid length " { format!("{found} of them") } else { value(found) };
            format!("{} is expected here, not {found}", wanted(expected))
        }),
    };
    translated.map_or_else(|| message.to_owned(), |translated| before.to_owned() + &translated)
}

/// What was probably meant, where one of serde's messages shows it.
pub fn meant(message: &str) -> Option<String> {
    if message.contains("duplicate field `") {
        return Some("remove one of them".to_owned());
    }
    let (_, rest) = message.split_once("invalid type: ")?;
    let (found, expected) = rest.rsplit_once(", expected ")?;
    let text = found.strip_prefix("string \"").and_then(|text| text.strip_suffix('"'));
    let is_number = |text: &&str| !text.is_empty() && text.len() < 20 && text.bytes().all(|byte| byte.is_ascii_digit());
    match (text, expected) {
        (_, "a sequence") if found != "null" => Some("put [ and ] around it".to_owned()),
        (Some(text), "u8" | "u16" | "u32" | "u64" | "usize") => {
            Some(text).filter(is_number).map(|number| format!("write {number} without double quotes"))
        }
        (Some(truth @ ("true" | "false")), "a boolean") => Some(format!("write {truth} without double quotes")),
        _ => None,
    }
}

/// The names of "expected one of `a`, `b`", "expected `a` or `b`", "expected `a`".
fn names(expected: &str) -> Option<String> {
    let names: Vec<String> = expected.split('`').skip(1).step_by(2).map(|name| format!("{name:?}")).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// What is there.
fn value(found: &str) -> String {
    let bare = |text: &str| text.trim_matches('`').to_owned();
    match found.split_once(' ') {
        Some(("integer" | "boolean", literal)) => bare(literal),
        Some(("floating", literal)) => bare(literal.trim_start_matches("point ")),
        Some(("string" | "character", literal)) => format!("the text {}", literal.replace('`', "\"")),
        _ => match found {
            "sequence" => "a list".to_owned(),
            "map" | "enum" => "an object".to_owned(),
            "unit value" | "Option value" => "null".to_owned(),
            found => found.to_owned(),
        },
    }
}

/// What should be.
fn wanted(expected: &str) -> String {
    let numbers = |most: u64| format!("a number from 0 to {most}");
    match expected {
        "a sequence" => "a list".to_owned(),
        "a map" => "an object".to_owned(),
        "a string" | "a borrowed string" => "a text".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "u8" => numbers(u8::MAX.into()),
        "u16" => numbers(u16::MAX.into()),
        "u32" => numbers(u32::MAX.into()),
        "u64" | "usize" => "a whole number, not below 0,".to_owned(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "unit" | "unit variant" | "variant identifier" | "string or map" => "a word".to_owned(),
        expected if expected.starts_with("struct ") => "an object".to_owned(),
        expected => match expected.strip_prefix("one of `").and(names(expected)) {
            Some(names) => format!("one of the words {names}"),
            None => expected.to_owned(),
        },
    }
}

/// What is wrong with a text that is no JSON, in its own words, and what was probably meant. `message` is `serde_json`'s, about
/// the byte `at`.
pub fn syntax(text: &str, at: usize, message: &str) -> (String, Option<String>) {
    let rest = text.get(at..).unwrap_or_default();
    let here = rest.chars().next();
    let words = match message {
        "EOF while parsing a list" => "the text ends within a list",
        "EOF while parsing an object" => "the text ends within an object",
        "EOF while parsing a string" => "the text ends within the double quotes of a text",
        "EOF while parsing a value" => "the text ends where a value is expected",
        "expected `:`" => "a : is expected after a key",
        "expected `,` or `]`" => "a , or the ] of the list is expected here",
        "expected `,` or `}`" => "a , or the } of the object is expected here",
        "expected value" | "expected ident" => {
            "a value is expected here: a text in double quotes, a number, true, false, [ or {"
        }
        "key must be a string" => "a key in double quotes is expected here",
        "trailing comma" => "a trailing comma: nothing comes after it",
        "trailing characters" => "something comes after the end",
        "recursion limit exceeded" => "too many lists and objects lie in each other",
        "invalid escape" => "there is no such escape: after \\ comes one of \" \\ / b f n r t u",
        message if message.starts_with("control character") => {
            "a line break or another control character in a text is written as an escape, \\n"
        }
        message => message,
    };
    let word: String = rest.chars().take_while(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '$')).collect();
    let hint = match (here, message) {
        _ if message == "recursion limit exceeded" || message.starts_with("EOF") => None,
        (Some('/' | '#'), _) => Some("JSON has no comments: remove it".to_owned()),
        (Some('\'' | '`' | '\u{2018}' | '\u{2019}' | '\u{201c}' | '\u{201d}'), _) => {
            Some("texts and keys stand in straight double quotes: \"text\"".to_owned())
        }
        (_, "trailing comma") => Some("remove the comma before it".to_owned()),
        _ if !text.trim_ascii_start().starts_with(['{', '[', '"']) => {
            Some("this is no JSON, which begins with a brace: {\"key\": [\"value\", \"value\"]}".to_owned())
        }
        (_, "key must be a string") if !word.is_empty() => Some(format!("write {word:?} with its double quotes")),
        (_, "expected value" | "expected ident") => match word.to_ascii_lowercase().as_str() {
            "" => None,
            truth @ ("true" | "false") => Some(format!("did you mean {truth}?")),
            _ => Some(format!("did you mean the text {word:?}?")),
        },
        (Some('"' | '{' | '[' | '0'..='9'), "expected `,` or `]`" | "expected `,` or `}`") => {
            Some("a comma is missing before it".to_owned())
        }
        _ => None,
    };
    (words.to_owned(), hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_serde_says_is_said_in_the_words_of_json() {
        for (serde, expected) in [
            ("unknown field `x`, expected one of `a`, `b`", r#"there is no key "x" here, but "a", "b""#),
            ("unknown field `x`, expected `a` or `b`", r#"there is no key "x" here, but "a", "b""#),
            ("unknown field `x`, there are no fields", r#"there is no key "x" here"#),
            ("unknown variant `x`, expected `a`", r#""x" is not one of the words "a""#),
            ("missing field `x`", r#"the key "x" is missing"#),
            ("duplicate field `x`", r#"the key "x" is there twice"#),
            ("invalid type: sequence, expected an object", "an object is expected here, not a list"),
            ("invalid type: map, expected a sequence", "a list is expected here, not an object"),
            (
                "invalid type: string \"a, expected b\", expected u32",
                "a number from 0 to 4294967295 is expected here, not the text \"a, expected b\"",
            ),
            ("invalid value: integer `-1`, expected u8", "a number from 0 to 255 is expected here, not -1"),
            ("invalid type: floating point `80.5`, expected a boolean", "true or false is expected here, not 80.5"),
            ("invalid type: null, expected one of `a`, `b`", r#"one of the words "a", "b" is expected here, not null"#),
            ("plugin \"p\": missing field `x`", r#"plugin "p": the key "x" is missing"#),
            ("nothing is wrong", "nothing is wrong"),
        ] {
            assert_eq!(in_words(serde), expected);
        }
    }

    #[test]
    fn what_was_meant_is_said_where_it_shows() {
        for (serde, expected) in [
            ("invalid type: string \"/bin/ls\", expected a sequence", Some("put [ and ] around it")),
            ("plugin \"p\": invalid type: string \"3\", expected u64", Some("write 3 without double quotes")),
            ("invalid type: string \"x3\", expected u64", None),
            ("invalid type: string \"true\", expected a boolean", Some("write true without double quotes")),
            ("invalid type: null, expected a sequence", None),
            ("duplicate field `x`", Some("remove one of them")),
        ] {
            assert_eq!(meant(serde).as_deref(), expected, "{serde}");
        }
    }

    #[test]
    fn what_is_no_json_is_answered_with_what_was_meant() {
        for (text, part, hint) in [
            ("{\"a\": [1,]}", "a trailing comma", "remove the comma"),
            ("{\"a\": 1,}", "a trailing comma", "remove the comma"),
            ("// a\n{}", "a value is expected", "no comments"),
            ("{\"a\": 1 # b\n}", "a , or the }", "no comments"),
            ("{'a': 1}", "a key in double quotes", "double quotes"),
            ("{a: 1}", "a key in double quotes", "write \"a\""),
            ("{\"a\": 'b'}", "a value is expected", "double quotes"),
            ("{\"a\": yes}", "a value is expected", "did you mean the text \"yes\"?"),
            ("{\"a\": True}", "a value is expected", "did you mean true?"),
            ("{\"a\": tru}", "a value is expected", ""),
            ("{\"a\": 1 \"b\": 2}", "a , or the }", "a comma is missing"),
            ("allow_executables:\n- /bin/sh\n", "a value is expected", "no JSON"),
            ("- a\n", "", "no JSON"),
            ("{\"a\": [1", "ends within a list", ""),
            ("{} {}", "something comes after the end", ""),
        ] {
            let error = serde_json::from_str::<serde_json::Value>(text).unwrap_err();
            let line: usize = text.split_inclusive('\n').take(error.line() - 1).map(str::len).sum();
            let (message, meant) = syntax(text, line + error.column() - 1, &crate::without_place(&error));
            assert!(message.contains(part), "{text}: {message}");
            assert!(meant.as_deref().unwrap_or_default().contains(hint), "{text}: {message}: {meant:?}");
        }
    }
}
