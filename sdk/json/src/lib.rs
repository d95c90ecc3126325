//! Configuration in JSON, read strictly, with mistakes that have a place: the policy's, and that of plugins within it.
//!
//! serde is made for programs that talk to each other, and is lenient where a person's mistake in a policy must not pass: a
//! struct may be written as a list, and `null` stands for an absent value. [`Object`] and [`present`] are stricter.

mod words;

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_path_to_error::Segment;

pub use self::words::{in_words, meant, syntax};

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// A JSON Pointer (RFC 6901); empty for the whole of the text. Of an unknown key, or one that is there twice, that key.
    pub pointer: String,
    /// What is wrong there.
    pub message: String,
    /// What was probably meant.
    pub hint: Option<String>,
}

impl Mistake {
    /// A mistake in serde's words; if they name what was expected, the hint is the name that is most like what was written.
    pub fn new(pointer: String, message: String) -> Self {
        let hint = similar(&message).map(|name| format!("did you mean {name:?}?"));
        Self { pointer, message, hint }
    }
}

/// Reads a value, all of whose syntax is known to be right.
///
/// # Errors
/// The first mistake.
pub fn from_str<T: DeserializeOwned>(text: &str) -> Result<T, Mistake> {
    let mut json = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let mut pointer = pointer(error.path());
        let message = without_place(error.inner());
        // serde tells the place of an unknown key, but not of one that is there twice.
        if let Some(twice) = message.strip_prefix("duplicate field `") {
            pointer = format!("{pointer}/{}", escaped(twice.trim_end_matches('`')));
        }
        let message = if message == WORDLESS { words_for::<T>(text, &pointer).unwrap_or(message) } else { message };
        Mistake::new(pointer, message)
    })?;
    json.end().map_err(|error| Mistake { pointer: String::new(), message: without_place(&error), hint: None })?;
    Ok(value)
}

/// What serde_json says of a value that should be one of some words and is no text: not what the words are.
const WORDLESS: &str = "expected value";

/// What should have been said then: a text that is none of the words, in the value's place, brings them to light.
fn words_for<T: DeserializeOwned>(text: &str, pointer: &str) -> Option<String> {
    use serde_json::Value;
    let mut document: Value = serde_json::from_str(text).ok()?;
    let value = document.pointer_mut(pointer)?;
    let found = match std::mem::replace(value, Value::from("")) {
        Value::Null => "null".to_owned(),
        Value::Array(_) => "sequence".to_owned(),
        Value::Object(_) => "map".to_owned(),
        Value::Bool(truth) => format!("boolean `{truth}`"),
        other => format!("integer `{other}`"),
    };
    let error = serde_json::from_str::<T>(&document.to_string()).err()?.to_string();
    let expected = error.strip_prefix("unknown variant ``, expected ").map(|words| {
        let words: Vec<String> = words.split('`').skip(1).step_by(2).map(|word| format!("`{word}`")).collect();
        format!("one of {}", words.join(", "))
    });
    Some(format!("invalid type: {found}, expected {}", expected.as_deref().unwrap_or("string or map")))
}

/// serde_json ends its messages with the place that it stopped at, which is not always the one that is shown.
pub fn without_place(error: &serde_json::Error) -> String {
    let message = error.to_string();
    message.rsplit_once(" at line ").map_or(message.clone(), |(message, _)| message.to_owned())
}

fn pointer(path: &serde_path_to_error::Path) -> String {
    path.iter()
        .filter_map(|segment| match segment {
            Segment::Seq { index } => Some(format!("/{index}")),
            Segment::Map { key } => Some(format!("/{}", escaped(key))),
            Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect()
}

/// A key as part of a JSON Pointer.
pub fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// The expected name that is most like the unknown one, from serde's "unknown field `x`, expected one of `a`, `b`".
fn similar(message: &str) -> Option<&str> {
    let names = message.strip_prefix("unknown field ").or_else(|| message.strip_prefix("unknown variant "))?;
    let mut names = names.split('`').skip(1).step_by(2);
    let unknown = names.next()?;
    names
        .map(|name| (strsim::normalized_damerau_levenshtein(unknown, name), name))
        .filter(|(likeness, _)| *likeness > 0.5)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, name)| name)
}

/// For `#[serde(default, deserialize_with = "present")]`: a key that is absent, or has a value other than `null`.
///
/// # Errors
/// Those of the value.
pub fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// A struct that is written as an object, and not as a list of its fields.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Map<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(Map(PhantomData))
    }
}

#[cfg(feature = "schema")]
impl<T: schemars::JsonSchema> schemars::JsonSchema for Object<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> std::borrow::Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        T::json_schema(generator)
    }
}

/// The JSON Schema of a type, as text: without what is about Rust instead of JSON, which are the names of its number types, and
/// `null` for absence.
#[cfg(feature = "schema")]
pub fn schema<T: schemars::JsonSchema>() -> String {
    let generator = schemars::generate::SchemaSettings::draft2020_12().into_generator();
    let mut schema = generator.into_root_schema_for::<T>().to_value();
    tidy(&mut schema);
    // The alternate form is indented.
    format!("{schema:#}\n")
}

/// Removes from a JSON Schema what is about Rust instead of JSON.
#[cfg(feature = "schema")]
pub fn tidy(schema: &mut serde_json::Value) {
    use serde_json::Value;
    match schema {
        Value::Object(object) => {
            object.retain(|key, value| key != "format" || !value.is_string());
            if object.get("default").is_some_and(Value::is_null) {
                object.remove("default");
            }
            if let Some(Value::Array(types)) = object.get_mut("type") {
                types.retain(|kind| kind != "null");
                if let [one] = types.as_slice() {
                    let one = one.clone();
                    object.insert("type".to_owned(), one);
                }
            }
            if let Some(Value::String(text)) = object.get_mut("description") {
                *text = text.replace('\n', " ");
            }
            object.values_mut().for_each(tidy);
        }
        Value::Array(array) => array.iter_mut().for_each(tidy),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Outer {
        #[serde(default, deserialize_with = "present")]
        list: Option<Vec<u8>>,
        #[serde(default)]
        inner: Vec<Object<Inner>>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Inner {
        #[serde(rename = "a/b", default)]
        number: u8,
    }

    #[test]
    fn every_mistake_has_its_place() {
        for (text, place, part) in [
            ("[]", "", "invalid type: sequence, expected an object"),
            ("null", "", "invalid type: null, expected an object"),
            (r#"{"list": null}"#, "/list", "invalid type: null"),
            (r#"{"list": [1, 256]}"#, "/list/1", "invalid value: integer `256`"),
            (r#"{"lst": []}"#, "/lst", "unknown field `lst`"),
            (r#"{"list": [], "list": []}"#, "/list", "duplicate field `list`"),
            (r#"{"inner": [{}, [1]]}"#, "/inner/1", "invalid type: sequence, expected an object"),
            (r#"{"inner": [{"a/b": "x"}]}"#, "/inner/0/a~1b", "invalid type: string"),
            (r#"{"inner": [{"a/b": 1, "a/b": 1}]}"#, "/inner/0/a~1b", "duplicate field"),
        ] {
            let mistake = from_str::<Object<Outer>>(text).unwrap_err();
            assert_eq!(mistake.pointer, place, "{text}: {mistake:?}");
            assert!(mistake.message.starts_with(part), "{text}: {mistake:?}");
            assert!(!mistake.message.contains(" at line "), "{text}: {mistake:?}");
        }
    }

    #[test]
    fn a_value_that_should_be_a_word_is_told_which() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(rename_all = "lowercase")]
        enum Word {
            One,
            Two,
        }
        #[derive(Debug, serde::Deserialize)]
        #[allow(dead_code)]
        struct Words {
            words: Vec<Word>,
        }
        for (value, found) in [("6", "integer `6`"), ("null", "null"), ("[\"one\"]", "sequence")] {
            let mistake = from_str::<Words>(&format!(r#"{{"words": ["two", {value}]}}"#)).unwrap_err();
            assert_eq!(mistake.pointer, "/words/1");
            assert_eq!(mistake.message, format!("invalid type: {found}, expected one of `one`, `two`"));
        }
    }

    #[test]
    fn a_misspelt_key_is_answered_with_the_one_that_was_meant() {
        let mistake = from_str::<Object<Outer>>(r#"{"iner": []}"#).unwrap_err();
        assert_eq!(mistake.hint.as_deref(), Some("did you mean \"inner\"?"));
        assert_eq!(from_str::<Object<Outer>>(r#"{"zzz": []}"#).unwrap_err().hint, None);
    }
}
