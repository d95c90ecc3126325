//! The forms that values have in the configuration. Read by hand instead of with `#[serde(untagged)]`, which loses the place
//! of a mistake and says nothing of what is wrong.

use std::fmt::{self, Display};
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{self, Deserialize, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};

/// One value, or a list of them.
#[derive(Debug, Clone)]
pub(crate) enum OneOrMany<T> {
    /// One, without a list around it.
    One(T),
    /// A list.
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    /// The values.
    pub(crate) fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = OneOrMany<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value or a list of values")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(OneOrMany::Many)
            }

            // Whatever it is: the value's own type says what is wrong with it.
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                T::deserialize(text.into_deserializer()).map(OneOrMany::One)
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
                T::deserialize(number.into_deserializer()).map(OneOrMany::One)
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
                T::deserialize(number.into_deserializer()).map(OneOrMany::One)
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Self::Value, E> {
                T::deserialize(number.into_deserializer()).map(OneOrMany::One)
            }

            fn visit_bool<E: de::Error>(self, truth: bool) -> Result<Self::Value, E> {
                T::deserialize(truth.into_deserializer()).map(OneOrMany::One)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(OneOrMany::One)
            }
        }
        deserializer.deserialize_any(Either(PhantomData))
    }
}

/// A number, or a range of them, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span<N> {
    /// The first.
    pub(crate) low: N,
    /// The last.
    pub(crate) high: N,
}

/// A number that can be the end of a [`Span`].
pub(crate) trait Number: Copy + Ord + FromStr + TryFrom<u64> + Display {
    /// The largest.
    const MAX: Self;
    /// A range, as an example.
    const EXAMPLE: &str;
}

impl Number for u16 {
    const MAX: Self = Self::MAX;
    const EXAMPLE: &str = "8000-8100";
}

impl Number for u32 {
    const MAX: Self = Self::MAX;
    const EXAMPLE: &str = "1000-1999";
}

impl<N: Number> Span<N> {
    /// Reads `first-last`, or a number.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (low, high) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| {
            // `FromStr` of numbers takes a plus sign.
            text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
        };
        let (low, high) = (number(low.trim())?, number(high.trim())?);
        (low <= high).then_some(Self { low, high })
    }

    /// Whether the number is one of them.
    pub(crate) fn contains(&self, number: N) -> bool {
        (self.low..=self.high).contains(&number)
    }
}

impl<'de, N: Number> Deserialize<'de> for Span<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Ends<N>(PhantomData<N>);
        impl<N: Number> Visitor<'_> for Ends<N> {
            type Value = Span<N>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a number from 0 to {}, or a range such as {:?}", N::MAX, N::EXAMPLE)
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Span<N>, E> {
                let number =
                    N::try_from(number).map_err(|_| E::invalid_value(de::Unexpected::Unsigned(number), &self))?;
                Ok(Span { low: number, high: number })
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Span<N>, E> {
                // JSON gives numbers below zero so.
                Err(E::invalid_value(de::Unexpected::Signed(number), &self))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span<N>, E> {
                Span::parse(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Ends(PhantomData))
    }
}

/// A text as it is written in a policy.
pub(crate) fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

mod schema {
    use std::borrow::Cow;

    use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

    use super::{Number, OneOrMany, Span};

    impl<T: JsonSchema> JsonSchema for OneOrMany<T> {
        fn inline_schema() -> bool {
            true
        }

        fn schema_name() -> Cow<'static, str> {
            format!("OneOrMany_{}", T::schema_name()).into()
        }

        fn json_schema(generator: &mut SchemaGenerator) -> Schema {
            let one = generator.subschema_for::<T>();
            json_schema!({ "anyOf": [one, { "type": "array", "items": one }] })
        }
    }

    impl<N: Number> JsonSchema for Span<N> {
        fn inline_schema() -> bool {
            true
        }

        fn schema_name() -> Cow<'static, str> {
            format!("Span_{}", N::MAX).into()
        }

        fn json_schema(_: &mut SchemaGenerator) -> Schema {
            let most: u64 = N::MAX.to_string().parse().unwrap_or(u64::MAX);
            json_schema!({
                "anyOf": [
                    { "type": "integer", "minimum": 0, "maximum": most },
                    { "type": "string", "pattern": "^ *[0-9]+ *(- *[0-9]+ *)?$", "examples": [N::EXAMPLE] },
                ]
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(json: &str) -> Result<Vec<(u16, u16)>, String> {
        let ports = serde_json::from_str::<OneOrMany<Span<u16>>>(json).map_err(|error| error.to_string())?;
        Ok(ports.into_vec().into_iter().map(|span| (span.low, span.high)).collect())
    }

    #[test]
    fn ports_are_numbers_or_ranges_alone_or_in_a_list() {
        assert_eq!(ports("80").unwrap(), [(80, 80)]);
        assert_eq!(ports(r#""8000-8100""#).unwrap(), [(8000, 8100)]);
        assert_eq!(ports(r#"[80, "443", " 1 - 2 "]"#).unwrap(), [(80, 80), (443, 443), (1, 2)]);
    }

    #[test]
    fn a_mistake_says_what_was_expected() {
        for json in [r#""80-""#, r#""9-8""#, r#""65536""#, "65536", "-1", "80.5", "true", r#"["x"]"#, r#""+80""#, "{}"]
        {
            let error = ports(json).unwrap_err();
            assert!(error.contains(r#"a number from 0 to 65535, or a range such as "8000-8100""#), "{json}: {error}");
        }
    }
}
