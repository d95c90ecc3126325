//! A record as one line: JSON for machines, text for people.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use serde_json::{Map, Value, json};

use super::{Outcome, Record};
use crate::event::{Action, Subject};
use crate::policy::Mode;

/// Name and version of the schema; see `policies/README.md`. Keys may be added within a version.
const SCHEMA: &str = "callgate.record/1";

/// One JSON object, and a newline.
pub(super) fn json(record: &Record<'_>) -> String {
    let decision = record.decision;
    let mut line = Map::new();
    let mut put = |key: &str, value: Value| line.insert(key.to_owned(), value);
    put("schema", SCHEMA.into());
    put("time", time(record.event.time_ms).into());
    if let Ok(Value::Object(event)) = serde_json::to_value(record.event) {
        for (key, value) in event {
            if key != "time_ms" {
                put(&key, value);
            }
        }
    }
    put("mode", serde_json::to_value(record.mode).unwrap_or_default());
    put("ancestors", serde_json::to_value(&record.ancestors).unwrap_or_default());
    put("verdict", if decision.denial.is_some() { "deny" } else { "allow" }.into());
    let (outcome, errno) = match record.outcome {
        Outcome::Allowed => ("allowed", None),
        Outcome::Denied(errno) => ("denied", Some(errno)),
        Outcome::WouldDeny(errno) => ("would-deny", Some(errno)),
        Outcome::Killed => ("killed", None),
    };
    put("outcome", outcome.into());
    put("plugin", decision.plugin.clone().into());
    match &decision.denial {
        Some(denial) => {
            put("rule", denial.rule.clone().into());
            put("reason", denial.reason.clone().into());
            if let Some(hint) = &denial.hint {
                put("hint", hint.clone().into());
            }
        }
        None => {
            put("rule", decision.allowed_by.clone().into());
        }
    }
    if let Some(errno) = errno {
        put("errno", json!({ "number": errno, "name": format!("{:?}", Errno::from_raw(errno)) }));
    }
    if !decision.failures.is_empty() {
        put("failures", serde_json::to_value(&decision.failures).unwrap_or_default());
    }
    if !decision.candidates.is_empty() {
        put("candidates", serde_json::to_value(&decision.candidates).unwrap_or_default());
    }
    put("took_us", (decision.took.as_nanos() as f64 / 1000.0).into());
    let mut text = Value::Object(line).to_string();
    text.push('\n');
    text
}

/// One line for a person.
pub(super) fn text(record: &Record<'_>, colour: bool) -> String {
    let (word, paint) = match record.outcome {
        Outcome::Allowed => ("allowed", "32"),
        Outcome::Denied(_) => ("denied", "31"),
        Outcome::WouldDeny(_) => ("would deny", "33"),
        Outcome::Killed => ("killed", "31"),
    };
    let mut line = String::from("callgate: ");
    let _ = if colour { write!(line, "\x1b[{paint}m{word}\x1b[0m ") } else { write!(line, "{word} ") };
    line.push_str(&plain(&format!("{} by {}", what(&record.event.action), who(&record.event.subject))));
    let decision = record.decision;
    if let Some(denial) = &decision.denial {
        let _ = write!(line, ": {} [{} {}]", plain(&denial.reason), plain(&decision.plugin), plain(&denial.rule));
        if let Some(hint) = &denial.hint {
            let _ = write!(line, "; to allow it, {}", plain(hint));
        }
    }
    line.push_str(if colour { "\r\n" } else { "\n" });
    line
}

/// That records were lost.
pub(super) fn lost(mode: Mode, lost: &[(&str, u64)], as_text: bool) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    if as_text {
        let each: Vec<String> = lost.iter().map(|(sink, count)| format!("{count} for {sink}")).collect();
        return format!("callgate: records were lost: {}\n", plain(&each.join(", ")));
    }
    let sinks: Map<String, Value> = lost.iter().map(|(sink, count)| ((*sink).to_owned(), (*count).into())).collect();
    format!(
        "{}\n",
        json!({ "schema": SCHEMA, "time": time(now), "event": "records-lost", "mode": mode, "lost": sinks })
    )
}

fn what(action: &Action) -> String {
    match action {
        Action::Exec(exec) => format!("exec of {}", exec.file.path),
        Action::ExecFileless(exec) => format!("exec of a file without a path, {}", exec.file.path),
        Action::Connect(end) => format!("connect to {}", end.address),
        Action::Bind(end) => format!("bind to {}", end.address),
        Action::Listen(end) => format!("listen on {}", end.address),
        Action::Accept(accept) => format!("accept from {}", accept.peer),
        Action::Send(end) => format!("send to {}", end.address),
        Action::Socket(socket) => format!("socket of family {}", socket.family),
        Action::Credentials(credentials) => credentials.call.clone(),
    }
}

fn who(subject: &Subject) -> String {
    let name = subject.executable.rsplit('/').next().unwrap_or_default();
    format!("{name}[{}] (uid {})", subject.pid, subject.uid)
}

/// What a hostile process calls its files must not end the line, nor move the cursor.
fn plain(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}

fn time(milliseconds: u64) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(milliseconds)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::{Decision, Denial};
    use crate::event::{Event, Exec, File};

    fn record(path: &str) -> (Event, Decision) {
        let file = File { path: path.to_owned(), ..File::default() };
        let action = Action::Exec(Exec { file, ..Exec::default() });
        let event = Event { sequence: 1, time_ms: 0, subject: Subject::default(), action };
        let denial = Denial { rule: "r".into(), reason: "no\nway".into(), hint: None, errno: None };
        let decision = Decision {
            denial: Some(denial),
            plugin: "p".into(),
            allowed_by: None,
            failures: vec![],
            candidates: vec![],
            took: Duration::ZERO,
        };
        (event, decision)
    }

    #[test]
    fn a_hostile_name_cannot_forge_a_line() {
        let (event, decision) = record("/tmp/x\ncallgate: all is well\x1b[2K");
        let record = Record {
            mode: Mode::Enforce,
            event: &event,
            ancestors: vec![],
            decision: &decision,
            outcome: Outcome::Denied(13),
        };
        for line in [json(&record), text(&record, false)] {
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            assert!(!line.contains('\x1b'), "{line}");
        }
    }

    #[test]
    fn a_record_says_who_what_and_why() {
        let (event, decision) = record("/usr/bin/whoami");
        let record = Record {
            mode: Mode::Enforce,
            event: &event,
            ancestors: vec![],
            decision: &decision,
            outcome: Outcome::Denied(13),
        };
        let line: Value = serde_json::from_str(&json(&record)).unwrap();
        assert_eq!(line["event"], "exec");
        assert_eq!(line["file"]["path"], "/usr/bin/whoami");
        assert_eq!(line["errno"]["name"], "EACCES");
        assert_eq!(line["rule"], "r");
    }
}
