//! A record as one line: JSON for machines, text for people.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{Outcome, Record, Refusal, Reloaded};
use crate::decide::{Denial, Failure};
use crate::event::{Action, Subject};
use crate::policy::Mode;

/// Name and version of the schema, which is `policies/record.schema.json`. Keys may be added within a version.
pub(crate) const SCHEMA: &str = "callgate.record/1";

/// A record as it is written. Every line of the log is one.
#[derive(Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(title = "callgate record"))]
pub struct Line<'a> {
    /// `callgate.record/1`.
    schema: &'static str,
    /// When the notification was received (RFC 3339, UTC).
    time: String,
    /// Number of the record, from 1; one that is missing was lost.
    record: u64,
    /// The mode in which it was decided.
    mode: Mode,
    /// What it is about.
    #[serde(flatten)]
    what: What<'a>,
}

/// What a record is about.
#[derive(Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged)]
enum What<'a> {
    /// A decision on an event.
    Decision(Box<DecisionLine<'a>>),
    /// A call that the supervisor itself refuses.
    Refusal(Box<RefusalLine<'a>>),
    /// Another policy is in force.
    Reloaded(ReloadedLine<'a>),
    /// What was lost: the last record, if there is one.
    Lost(LostLine<'a>),
}

#[derive(Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
struct DecisionLine<'a> {
    /// Position in the order of decisions, from 1, over recorded and unrecorded ones.
    sequence: u64,
    /// The event's kind, and what belongs to it.
    #[serde(flatten)]
    action: &'a Action,
    /// The process behind the event.
    subject: &'a Subject,
    /// Its ancestors, parent first, as far as they belong to the workload.
    ancestors: &'a [Subject],
    /// What was decided, whether it was carried out or not.
    verdict: Verdict,
    /// What became of the call.
    outcome: &'static str,
    /// The errno that the caller got, or in a dry run would have got.
    #[serde(skip_serializing_if = "Option::is_none")]
    errno: Option<ErrnoLine>,
    /// The plugin whose verdict counted; `callgate` for the policy's default and the supervisor's own rules.
    plugin: &'a str,
    /// The rule that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    /// Why it was denied.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    /// What would allow it.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
    /// Plugins that failed on the event.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    failures: &'a [Failure],
    /// What plugins that are themselves in dry-run would have denied.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    candidates: Vec<Candidate<'a>>,
    /// How long the plugins took, in microseconds.
    took_us: f64,
}

#[derive(Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    Allow,
    Deny,
}

#[derive(Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
struct Candidate<'a> {
    /// The plugin.
    plugin: &'a str,
    /// What it said.
    #[serde(flatten)]
    denial: &'a Denial,
}

#[derive(Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
struct ErrnoLine {
    /// Its number.
    number: i32,
    /// Its name (errno(3)).
    name: String,
}

#[derive(Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
struct RefusalLine<'a> {
    /// `call`.
    event: &'static str,
    /// The system call's name, where this build knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    call: Option<&'a str>,
    /// Its number.
    number: i32,
    /// `AUDIT_ARCH_…` of the entry that was used (linux/audit.h), in hexadecimal.
    architecture: String,
    /// The process.
    subject: &'a Subject,
    /// Its ancestors, parent first, as far as they belong to the workload.
    ancestors: &'a [Subject],
    /// What became of the call.
    outcome: &'static str,
    /// The errno that the caller got, or in a dry run would have got.
    #[serde(skip_serializing_if = "Option::is_none")]
    errno: Option<ErrnoLine>,
    /// `callgate`.
    plugin: &'static str,
    /// The supervisor's rule.
    rule: &'a str,
    /// Why.
    reason: &'a str,
}

#[derive(Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
struct ReloadedLine<'a> {
    /// `policy-reloaded`.
    event: &'static str,
    /// The policy's file.
    policy: String,
    /// SHA-256 of its text.
    sha256: String,
    /// How it came: `read again` or `handed over`.
    by: &'a str,
    /// Its plugins.
    plugins: &'a [String],
}

#[derive(Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
struct LostLine<'a> {
    /// `records-lost`.
    event: &'static str,
    /// How many records each sink has lost.
    lost: BTreeMap<&'a str, u64>,
}

/// One JSON object, and a newline.
pub(super) fn json(record: &Record, number: u64) -> String {
    let Record { event, decision, .. } = record;
    let denial = decision.denial.as_ref();
    let (outcome, errno) = outcome(record.outcome);
    let what = DecisionLine {
        sequence: event.sequence,
        action: &event.action,
        subject: &event.subject,
        ancestors: &record.ancestors,
        verdict: if denial.is_some() { Verdict::Deny } else { Verdict::Allow },
        outcome,
        errno,
        plugin: &decision.plugin,
        rule: denial.map(|denial| denial.rule.as_str()).or(decision.allowed_by.as_deref()),
        reason: denial.map(|denial| denial.reason.as_str()),
        hint: denial.and_then(|denial| denial.hint.as_deref()),
        failures: &decision.failures,
        candidates: decision.candidates.iter().map(|(plugin, denial)| Candidate { plugin, denial }).collect(),
        took_us: decision.took.as_nanos() as f64 / 1000.0,
    };
    line(event.time_ms, number, record.mode, What::Decision(Box::new(what)))
}

/// One JSON object, and a newline.
pub(super) fn refusal_json(refusal: &Refusal, number: u64) -> String {
    let (outcome, errno) = outcome(refusal.outcome);
    let what = RefusalLine {
        event: "call",
        call: refusal.call,
        number: refusal.number,
        architecture: format!("{:#x}", refusal.architecture),
        subject: &refusal.subject,
        ancestors: &refusal.ancestors,
        outcome,
        errno,
        plugin: "callgate",
        rule: &refusal.rule,
        reason: &refusal.reason,
    };
    line(refusal.time_ms, number, refusal.mode, What::Refusal(Box::new(what)))
}

/// One JSON object, and a newline.
pub(super) fn reloaded_json(reloaded: &Reloaded, number: u64) -> String {
    let digest = Sha256::digest(reloaded.policy.text.as_bytes());
    let what = ReloadedLine {
        event: "policy-reloaded",
        policy: reloaded.policy.path.display().to_string(),
        sha256: hex::encode(digest),
        by: reloaded.by,
        plugins: &reloaded.plugins,
    };
    line(reloaded.time_ms, number, reloaded.mode, What::Reloaded(what))
}

/// One line for a person.
pub(super) fn reloaded_text(reloaded: &Reloaded, colour: bool) -> String {
    let Reloaded { mode, policy, by, .. } = reloaded;
    end(format!("callgate: policy {} is in force ({by}; {mode})", plain(&policy.path.display().to_string())), colour)
}

fn line(time_ms: u64, record: u64, mode: Mode, what: What<'_>) -> String {
    let line = Line { schema: SCHEMA, time: time(time_ms), record, mode, what };
    // Nothing in it can fail to become JSON: keys are strings, numbers are finite.
    let text = serde_json::to_string(&line).unwrap_or_default();
    let mut text = if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) { text } else { escaped(&text) };
    text.push('\n');
    text
}

/// JSON escapes what is below a blank; a log is read on terminals, and they obey more. Such a character can only be in a
/// string.
fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if misleads(c) {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                let _ = write!(text, "\\u{unit:04x}");
            }
        } else {
            text.push(c);
        }
    }
    text
}

fn outcome(outcome: Outcome) -> (&'static str, Option<ErrnoLine>) {
    let errno = |number: i32| Some(ErrnoLine { number, name: format!("{:?}", Errno::from_raw(number)) });
    match outcome {
        Outcome::Allowed => ("allowed", None),
        Outcome::Denied(number) => ("denied", errno(number)),
        Outcome::WouldDeny(number) => ("would-deny", errno(number)),
        Outcome::Killed => ("killed", None),
    }
}

/// One line for a person.
pub(super) fn text(record: &Record, colour: bool) -> String {
    let decision = &record.decision;
    let mut line = begin(record.outcome, colour);
    line.push_str(&plain(&format!("{} by {}", what(&record.event.action), who(&record.event.subject))));
    if let Some(denial) = &decision.denial {
        let _ = write!(line, ": {} [{} {}]", plain(&denial.reason), plain(&decision.plugin), plain(&denial.rule));
        if let Some(hint) = &denial.hint {
            let _ = write!(line, "; to allow it, {}", plain(hint));
        }
    }
    for failure in &decision.failures {
        let _ = write!(line, "; plugin {} failed: {}", plain(&failure.plugin), plain(&failure.message));
    }
    for (plugin, denial) in &decision.candidates {
        let _ = write!(line, "; {} would deny it: {}", plain(plugin), plain(&denial.reason));
    }
    end(line, colour)
}

/// One line for a person.
pub(super) fn refusal_text(refusal: &Refusal, colour: bool) -> String {
    let mut line = begin(refusal.outcome, colour);
    let call = refusal.call.map_or_else(|| format!("system call {}", refusal.number), str::to_owned);
    let _ = write!(line, "{}", plain(&format!("{call} by {}", who(&refusal.subject))));
    let _ = write!(line, ": {} [callgate {}]", plain(&refusal.reason), refusal.rule);
    end(line, colour)
}

fn begin(outcome: Outcome, colour: bool) -> String {
    let (word, paint) = match outcome {
        Outcome::Allowed => ("allowed", "32"),
        Outcome::Denied(_) => ("denied", "31"),
        Outcome::WouldDeny(_) => ("would deny", "33"),
        Outcome::Killed => ("killed", "31"),
    };
    if colour { format!("callgate: \x1b[{paint}m{word}\x1b[0m ") } else { format!("callgate: {word} ") }
}

/// A terminal may be in raw mode, where a line feed alone does not return the carriage.
fn end(mut line: String, terminal: bool) -> String {
    line.push_str(if terminal { "\r\n" } else { "\n" });
    line
}

/// That records were lost.
pub(super) fn lost(mode: Mode, number: u64, lost: &[(String, u64)], as_text: bool) -> String {
    if as_text {
        let each: Vec<String> = lost.iter().map(|(sink, count)| format!("{count} for {sink}")).collect();
        return format!("callgate: records were lost: {}\n", plain(&each.join(", ")));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    line(
        now,
        number,
        mode,
        What::Lost(LostLine {
            event: "records-lost",
            lost: lost.iter().map(|(sink, count)| (sink.as_str(), *count)).collect(),
        }),
    )
}

/// What was asked for, for a person.
pub(crate) fn what(action: &Action) -> String {
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

/// Who asked, for a person.
pub(crate) fn who(subject: &Subject) -> String {
    // What is no path here is shown whole: its last part is what the process likes to be called.
    let name = &subject.executable;
    let name = if name.starts_with('/') { name.rsplit('/').next().unwrap_or_default() } else { name };
    format!("{name}[{}] (uid {})", subject.pid, subject.uid)
}

/// What a hostile process calls its files must not end the line, nor move the cursor, nor look like something else.
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        if misleads(c) { plain.extend(c.escape_default()) } else { plain.push(c) }
    }
    plain
}

/// Characters that terminals obey instead of showing them (also those of the C1 set), and those that turn the direction of
/// what stands around them or break the line (Unicode Standard Annex 9; Technical Report 36, 2.10.5).
fn misleads(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

fn time(milliseconds: u64) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(milliseconds)).to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::decide::{Decision, Denial};
    use crate::event::{Event, Exec, File};

    fn record(path: &str) -> Record {
        let file = File { path: path.to_owned(), ..File::default() };
        let action = Action::Exec(Exec { file, ..Exec::default() });
        let event = Event { sequence: 1, time_ms: 0, subject: Subject::default(), action };
        let denial = Denial { rule: "r".into(), reason: "no\nway".into(), hint: None, errno: None };
        let decision = Arc::new(Decision {
            denial: Some(denial),
            plugin: "p".into(),
            allowed_by: None,
            failures: vec![],
            candidates: vec![],
            took: Duration::ZERO,
        });
        Record { mode: Mode::Enforce, event, ancestors: vec![], decision, outcome: Outcome::Denied(13) }
    }

    #[test]
    fn a_hostile_name_cannot_forge_a_line() {
        let record = record("/tmp/x\ncallgate: all is well\x1b[2K");
        for line in [json(&record, 1), text(&record, false)] {
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            assert!(!line.contains('\x1b'), "{line}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_name_makes_a_terminal_do_anything(path: String, kind in 0..6_usize, at in 0..9_usize) {
            let trick = ["\u{9b}2J", "\x7f", "\u{202e}", "\u{2028}", "\x1b]0;x\x07", "\r"][kind];
            let path: String = path.chars().take(at).chain(trick.chars()).chain(path.chars().skip(at)).collect();
            let record = record(&path);
            let json = json(&record, 1);
            for line in [json.as_str(), &text(&record, false)] {
                proptest::prop_assert!(!line.trim_end_matches('\n').chars().any(misleads), "{:?}", line);
            }
            let read: serde_json::Value = serde_json::from_str(&json).unwrap();
            proptest::prop_assert_eq!(&read["file"]["path"], &path);
        }
    }

    #[test]
    fn a_record_says_who_what_and_why() {
        let record = record("/usr/bin/whoami");
        let line: serde_json::Value = serde_json::from_str(&json(&record, 1)).unwrap();
        assert_eq!(line["event"], "exec");
        assert_eq!(line["file"]["path"], "/usr/bin/whoami");
        assert_eq!(line["errno"]["name"], "EACCES");
        assert_eq!(line["rule"], "r");
    }
}
