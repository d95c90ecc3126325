//! Events as people write them, and as callgate records them.
//!
//! A person's event is read strictly: an unknown key is a mistake, with its place. What a person leaves out has a plausible
//! value, for a rule about paths is not to be tried on events that are full of inode numbers. A record is read leniently,
//! because keys may be added to records.

use callgate_json::{Mistake, Object, escaped, from_str};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::audit::line::SCHEMA as RECORD;
use crate::decide::KnownFacts;
use crate::event::{Action, Event, EventKind, Subject};
use crate::policy::{PolicyError, Source};

/// An event that was written down, and what was written down beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) event: Event,
    pub(super) facts: KnownFacts,
}

/// A file of events.
#[derive(Debug)]
pub(super) struct Log {
    /// Each with the line on which it begins.
    pub(super) events: Vec<(usize, Told)>,
    /// Records that are about something else: refused calls, lost records.
    pub(super) others: usize,
}

/// Reads one event, or any number of them one after the other, as in an audit log.
pub(super) fn read(source: &Source) -> Result<Log, PolicyError> {
    let mut log = Log { events: Vec::new(), others: 0 };
    let mut values = serde_json::Deserializer::from_str(&source.text).into_iter::<&RawValue>();
    let (mut line, mut counted) = (1, 0);
    while let Some(value) = values.next() {
        let value = value.map_err(|error| source.no_json(&error))?;
        let start = values.byte_offset() - value.get().len();
        line += source.text[counted..start].matches('\n').count();
        counted = start;
        match record_or_event(value.get()) {
            Ok(Some(told)) => log.events.push((line, numbered(told, log.events.len()))),
            Ok(None) => log.others += 1,
            Err(Mistake { pointer, message, hint }) => {
                let part = Source { path: source.path.clone(), text: value.get().to_owned() };
                return Err(part.mistake(&pointer, message, hint).within(source, start));
            }
        }
    }
    Ok(log)
}

/// Events have numbers, from 1; those of records stay.
pub(super) fn numbered(mut told: Told, before: usize) -> Told {
    if told.event.sequence == 0 {
        told.event.sequence = before as u64 + 1;
    }
    told
}

/// `None`: a record that is not about an event.
fn record_or_event(text: &str) -> Result<Option<Told>, Mistake> {
    let value = parse(text)?;
    if value.get("schema") != Some(&Value::from(RECORD)) {
        return event_of(value, &[]).map(Some);
    }
    let is_event = EventKind::ALL.iter().any(|kind| value["event"] == kind.name());
    if is_event { record(value).map(Some) } else { Ok(None) }
}

/// Reads one event, beside whose keys there may be these `others`.
pub(super) fn event(text: &str, others: &[&str]) -> Result<Told, Mistake> {
    event_of(parse(text)?, others)
}

fn parse(text: &str) -> Result<Value, Mistake> {
    let Unique(value) = from_str(text)?;
    if value.is_object() {
        return Ok(value);
    }
    Err(Mistake { pointer: String::new(), message: "an event is an object".to_owned(), hint: None })
}

/// What stands in an event whatever its kind is.
#[derive(Debug, serde::Deserialize)]
struct Head {
    #[serde(default)]
    sequence: u64,
    #[serde(default)]
    time_ms: u64,
    subject: Object<Subject>,
    #[serde(default)]
    facts: Option<Object<KnownFacts>>,
}

fn record(value: Value) -> Result<Told, Mistake> {
    let wrong = |pointer: &str, message: String| Mistake { pointer: pointer.to_owned(), message, hint: None };
    let kind = kind(&value)?;
    let mut told = typed(&value, kind)?;
    if let Some(time) = value.get("time") {
        let parsed = time.as_str().and_then(|time| humantime::parse_rfc3339(time).ok());
        let parsed = parsed.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        let since = parsed.ok_or_else(|| wrong("/time", format!("{time} is no time of RFC 3339")))?;
        told.event.time_ms = since.as_millis() as u64;
    }
    if told.facts.ancestors.is_empty()
        && let Some(ancestors) = value.get("ancestors")
    {
        told.facts.ancestors = part("/ancestors", ancestors)?;
    }
    Ok(told)
}

fn event_of(written: Value, others: &[&str]) -> Result<Told, Mistake> {
    let kind = kind(&written)?;
    let told = typed(&filled_in(written.clone(), kind), kind)?;
    // What the types did not take is not in what they write.
    let mut taken = serde_json::to_value(&told.event).unwrap_or_default();
    taken["facts"] = serde_json::to_value(&told.facts).unwrap_or_default();
    for other in others {
        taken[*other] = written.get(*other).cloned().unwrap_or_default();
    }
    match unknown(&written, &taken, "") {
        Some(mistake) => Err(mistake),
        None => Ok(told),
    }
}

fn kind(value: &Value) -> Result<EventKind, Mistake> {
    let names = || EventKind::ALL.map(|kind| format!("`{kind}`")).join(", ");
    match value.get("event").and_then(Value::as_str) {
        None => {
            let message = match value.get("event") {
                None => format!("missing field `event`, one of {}", names()),
                Some(other) => format!("{other} is no kind of event, which are {}", names()),
            };
            Err(Mistake { pointer: "/event".to_owned(), message, hint: None })
        }
        Some(name) => EventKind::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            Mistake::new("/event".to_owned(), format!("unknown variant `{name}`, expected one of {}", names()))
        }),
    }
}

/// The event and its facts; keys that it does not know are passed over.
fn typed(value: &Value, kind: EventKind) -> Result<Told, Mistake> {
    // From text, since that is where places and strictness are.
    let text = value.to_string();
    let head: Head = from_str(&text)?;
    let action = match kind {
        EventKind::Exec => Action::Exec(from_str(&text)?),
        EventKind::ExecFileless => Action::ExecFileless(from_str(&text)?),
        EventKind::Connect => Action::Connect(from_str(&text)?),
        EventKind::Bind => Action::Bind(from_str(&text)?),
        EventKind::Listen => Action::Listen(from_str(&text)?),
        EventKind::Accept => Action::Accept(from_str(&text)?),
        EventKind::Send => Action::Send(from_str(&text)?),
        EventKind::Socket => Action::Socket(from_str(&text)?),
        EventKind::Credentials => Action::Credentials(from_str(&text)?),
    };
    let (Object(subject), facts) = (head.subject, head.facts.map(|Object(facts)| facts).unwrap_or_default());
    Ok(Told { event: Event { sequence: head.sequence, time_ms: head.time_ms, subject, action }, facts })
}

fn part<T: de::DeserializeOwned>(pointer: &str, value: &Value) -> Result<T, Mistake> {
    from_str(&value.to_string())
        .map_err(|mistake| Mistake { pointer: format!("{pointer}{}", mistake.pointer), ..mistake })
}

/// Puts a plausible value where nothing is written.
fn filled_in(mut event: Value, kind: EventKind) -> Value {
    fill(&mut event, json!({ "subject": {}, "time_ms": 1_700_000_000_000_u64 }));
    fill_subject(&mut event["subject"]);
    if let Some(Value::Array(ancestors)) = event.pointer_mut("/facts/ancestors") {
        ancestors.iter_mut().for_each(fill_subject);
    }
    match kind {
        EventKind::Exec | EventKind::ExecFileless => {
            for (key, canonical) in [("file", kind == EventKind::Exec), ("loader", true)] {
                event.get_mut(key).into_iter().for_each(|file| fill_file(file, canonical));
            }
            if let Some(Value::Array(interpreters)) = event.get_mut("interpreters") {
                interpreters.iter_mut().for_each(|file| fill_file(file, true));
            }
            let path = event.pointer("/file/path").cloned().unwrap_or_else(|| "".into());
            fill(&mut event, json!({ "requested": path.clone(), "arguments": [path], "directory": "/" }));
        }
        EventKind::Connect | EventKind::Bind | EventKind::Listen => fill_socket(&mut event, "/address/family", 1),
        EventKind::Send => fill_socket(&mut event, "/address/family", 2),
        EventKind::Accept => fill_socket(&mut event, "/peer/family", 1),
        EventKind::Socket => fill(&mut event, json!({ "protocol": 0 })),
        EventKind::Credentials => {}
    }
    event
}

fn fill_subject(subject: &mut Value) {
    let pid = subject.get("pid").cloned().unwrap_or_else(|| 100.into());
    fill(
        subject,
        json!({ "pid": pid.clone(), "tid": pid, "parent": 1, "executable": "/usr/bin/bash", "uid": 0, "gid": 0 }),
    );
}

fn fill_file(file: &mut Value, canonical: bool) {
    fill(
        file,
        json!({
            "canonical": canonical, "device": 1, "inode": 1, "uid": 0, "gid": 0, "mode": 0o100_755, "size": 1, "changed_ns": 0
        }),
    );
}

/// The usual socket for an address of this family: numbers of socket(2).
fn fill_socket(event: &mut Value, family: &str, kind: u32) {
    let protocol = if kind == 1 { 6 } else { 17 };
    let socket = match event.pointer(family).and_then(Value::as_str) {
        Some("ipv4") => json!({ "family": 2, "type": kind, "protocol": protocol }),
        Some("ipv6") => json!({ "family": 10, "type": kind, "protocol": protocol }),
        Some("unix" | "unix-abstract" | "unix-unnamed") => json!({ "family": 1, "type": kind, "protocol": 0 }),
        _ => return,
    };
    fill(event, json!({ "socket": socket }));
}

fn fill(value: &mut Value, defaults: Value) {
    if let (Value::Object(object), Value::Object(defaults)) = (value, defaults) {
        for (key, default) in defaults {
            object.entry(key).or_insert(default);
        }
    }
}

/// Keys that are not written out while they are empty.
const SILENT: [&str; 5] = ["interpreters", "loader", "uids", "gids", "groups"];

/// The first key that stands in `written` and not in `taken`.
fn unknown(written: &Value, taken: &Value, at: &str) -> Option<Mistake> {
    match (written, taken) {
        (Value::Object(written), Value::Object(taken)) => written.iter().find_map(|(key, value)| {
            let pointer = format!("{at}/{}", escaped(key));
            match taken.get(key) {
                Some(taken) => unknown(value, taken, &pointer),
                None if SILENT.contains(&key.as_str()) && (value.is_null() || *value == json!([])) => None,
                None => {
                    let known: Vec<String> = taken.keys().map(|key| format!("`{key}`")).collect();
                    let message = format!("unknown field `{key}`, expected one of {}", known.join(", "));
                    Some(Mistake::new(pointer, message))
                }
            }
        }),
        (Value::Array(written), Value::Array(taken)) => written
            .iter()
            .zip(taken)
            .enumerate()
            .find_map(|(index, (written, taken))| unknown(written, taken, &format!("{at}/{index}"))),
        _ => None,
    }
}

/// JSON in which no object has a key twice.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Unique;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a value")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Unique, E> {
                Ok(Unique(value.into()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Unique, E> {
                Ok(Unique(value.into()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Unique, E> {
                Ok(Unique(value.into()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Unique, E> {
                Ok(Unique(value.into()))
            }

            fn visit_str<E>(self, value: &str) -> Result<Unique, E> {
                Ok(Unique(value.into()))
            }

            fn visit_unit<E>(self) -> Result<Unique, E> {
                Ok(Unique(Value::Null))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Unique, A::Error> {
                let mut values = Vec::new();
                while let Some(Unique(value)) = list.next_element()? {
                    values.push(value);
                }
                Ok(Unique(Value::Array(values)))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique, A::Error> {
                let mut object = Map::new();
                while let Some(key) = map.next_key::<String>()? {
                    let Unique(value) = map.next_value()?;
                    if object.contains_key(&key) {
                        return Err(de::Error::custom(format_args!("duplicate field `{key}`")));
                    }
                    object.insert(key, value);
                }
                Ok(Unique(Value::Object(object)))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Told {
        event(text, &[]).unwrap_or_else(|mistake| panic!("{text}: {mistake:?}"))
    }

    fn mistake(text: &str) -> Mistake {
        event(text, &[]).expect_err(text)
    }

    #[test]
    fn what_is_left_out_is_plausible() {
        let Told { event, .. } = told(r#"{"event": "exec", "file": {"path": "/bin/ls"}, "subject": {"pid": 7}}"#);
        assert_eq!((event.subject.pid, event.subject.tid), (7, 7));
        let Action::Exec(exec) = event.action else { panic!("{event:?}") };
        assert_eq!(
            (exec.requested.as_str(), exec.arguments, exec.file.canonical),
            ("/bin/ls", vec!["/bin/ls".to_owned()], true)
        );
        let Told { event, .. } = told(r#"{"event": "send", "address": {"family": "ipv6", "ip": "::1", "port": 53}}"#);
        let Action::Send(end) = event.action else { panic!("{event:?}") };
        assert_eq!((end.socket.family, end.socket.kind, end.socket.protocol), (10, 2, 17));
    }

    #[test]
    fn every_mistake_has_its_place() {
        for (text, place, part) in [
            ("[]", "", "an event is an object"),
            ("{}", "/event", "missing field `event`"),
            (r#"{"event": "exce"}"#, "/event", "unknown variant `exce`"),
            (r#"{"event": 1}"#, "/event", "1 is no kind of event"),
            (r#"{"event": "exec"}"#, "", "missing field `file`"),
            (r#"{"event": "exec", "file": {}}"#, "/file", "missing field `path`"),
            (r#"{"event": "exec", "file": {"path": "/x", "inod": 1}}"#, "/file/inod", "unknown field `inod`"),
            (r#"{"event": "exec", "file": {"path": "/x"}, "argument": []}"#, "/argument", "unknown field"),
            (
                r#"{"event": "exec", "file": {"path": "/x"}, "interpreters": [{"path": "/y", "z": 1}]}"#,
                "/interpreters/0/z",
                "unknown",
            ),
            (r#"{"event": "exec", "file": {"path": "/x", "path": "/y"}}"#, "/file/path", "duplicate field"),
            (r#"{"event": "exec", "file": {"path": "/x"}, "subject": {"uid": -1}}"#, "/subject/uid", "invalid value"),
            (r#"{"event": "connect", "address": {"family": "ipv4", "ip": "1.2.3", "port": 1}}"#, "/address", "invalid"),
            (
                r#"{"event": "connect", "address": {"family": "ipv4", "ip": "1.2.3.4", "port": 1, "prot": 2}}"#,
                "/address/prot",
                "unknown",
            ),
            (
                r#"{"event": "exec", "file": {"path": "/x"}, "facts": {"ancestor": []}}"#,
                "/facts/ancestor",
                "unknown field",
            ),
            (
                r#"{"event": "exec", "file": {"path": "/x"}, "facts": {"ancestors": [{"pit": 1}]}}"#,
                "/facts/ancestors/0/pit",
                "unknown field",
            ),
        ] {
            let mistake = mistake(text);
            assert_eq!(mistake.pointer, place, "{text}: {mistake:?}");
            assert!(mistake.message.contains(part), "{text}: {mistake:?}");
        }
    }

    #[test]
    fn a_key_that_is_nearly_right_is_answered_with_the_right_one() {
        let mistake = mistake(r#"{"event": "exec", "file": {"path": "/x"}, "argumets": []}"#);
        assert_eq!(mistake.hint.as_deref(), Some("did you mean \"arguments\"?"));
    }

    #[test]
    fn whatever_an_event_holds_can_be_written() {
        for text in [
            r#"{"event": "exec-fileless", "file": {"path": "/memfd:x (deleted)"}, "interpreters": [], "loader": null, "runs_loader": true}"#,
            r#"{"event": "accept", "local": {"family": "ipv4", "ip": "0.0.0.0", "port": 80}, "peer": {"family": "ipv4", "ip": "1.2.3.4", "port": 1}}"#,
            r#"{"event": "credentials", "call": "setuid", "uids": [1], "gids": [], "groups": null}"#,
            r#"{"event": "socket", "family": 17, "type": 3}"#,
            r#"{"event": "bind", "address": {"family": "unix-unnamed"}}"#,
            r#"{"event": "connect", "socket": {"family": 40, "type": 1, "protocol": 0}, "address": {"family": "vsock", "cid": 2, "port": 3}}"#,
        ] {
            let one = told(text);
            let again = serde_json::to_string(&one.event).unwrap();
            assert_eq!(told(&again), one, "{again}");
        }
    }

    #[test]
    fn facts_stand_beside_the_event() {
        let one = told(
            r#"{"event": "exec", "file": {"path": "/bin/sh"}, "facts": {
                "ancestors": [{"executable": "/usr/sbin/nginx"}], "digests": {"/bin/sh": "00"}, "environment": {"A": "b"},
                "standard_streams": ["closed", {"socket": {"socket": {"family": 2, "type": 1, "protocol": 6}}}],
                "names": ["x"], "started_ms": 3}}"#,
        );
        assert_eq!(one.facts.ancestors[0].executable, "/usr/sbin/nginx");
        assert_eq!(one.facts.standard_streams.len(), 2);
    }
}
