//! Business hours, and a kill switch: outside of them nothing new happens. A reload of the policy flips the switch.
//!
//! The time is that of the event, and hours are those of a fixed offset from UTC: there is no database of time zones in a plugin,
//! so that where clocks change, the offset changes with the policy.

use callgate_sdk::{
    Accepted, ConfigError, Credentials, Endpoint, Event, EventKinds, Exec, Object, Plugin, Socket, Verdict,
    canonical_path,
};
use schemars::JsonSchema;
use serde::Deserialize;

/// The plugin, configured.
#[derive(Debug)]
pub struct Hours {
    closed: bool,
    hours: Option<Vec<Opening>>,
    offset_minutes: i64,
    governs: EventKinds,
    except: Vec<String>,
}

/// When things may happen.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The kill switch: true, and nothing happens at any hour.
    closed: bool,
    /// When it is open. Absent: always.
    #[schemars(with = "Vec<Span>")]
    hours: Option<Vec<Object<Span>>>,
    /// What the hours are relative to: `+02:00`, `-05:30`.
    #[schemars(regex(pattern = "^[+-][0-9]{2}:[0-9]{2}$"))]
    utc_offset: String,
    /// The kinds of event that are denied while it is closed.
    governs: Vec<Kind>,
    /// Programs that may do all that at any hour, by absolute path: the one that is run, or the one that connects.
    #[schemars(extend("items" = { "type": "string", "pattern": "^/" }))]
    except: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        let governs = vec![Kind::Exec, Kind::Connect];
        Self { closed: false, hours: None, utc_offset: "+00:00".to_owned(), governs, except: Vec::new() }
    }
}

/// Some hours of some days.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Span {
    /// The days on which they begin. Absent: every day.
    #[serde(default = "every_day")]
    days: Vec<Day>,
    /// The first minute: `08:00`.
    #[schemars(regex(pattern = "^([01][0-9]|2[0-3]):[0-5][0-9]$"))]
    from: String,
    /// The first minute that does not belong to them any more: `18:00`, `24:00`. Not after `from`: on the next day.
    #[schemars(regex(pattern = "^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$"))]
    to: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

fn every_day() -> Vec<Day> {
    vec![Day::Mon, Day::Tue, Day::Wed, Day::Thu, Day::Fri, Day::Sat, Day::Sun]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    /// Programs, also from files without a path.
    Exec,
    /// Connections.
    Connect,
    /// Datagrams.
    Send,
    /// Local addresses.
    Bind,
    /// Waiting for connections.
    Listen,
    /// Connections that peers make.
    Accept,
    /// New sockets.
    Socket,
    /// Changes of user and group.
    Credentials,
}

impl Kind {
    fn kinds(self) -> EventKinds {
        match self {
            Self::Exec => EventKinds::EXEC | EventKinds::EXEC_FILELESS,
            Self::Connect => EventKinds::CONNECT,
            Self::Send => EventKinds::SEND,
            Self::Bind => EventKinds::BIND,
            Self::Listen => EventKinds::LISTEN,
            Self::Accept => EventKinds::ACCEPT,
            Self::Socket => EventKinds::SOCKET,
            Self::Credentials => EventKinds::CREDENTIALS,
        }
    }
}

const DAY: i64 = 24 * 60;
const WEEK: i64 = 7 * DAY;

/// Hours that begin in this minute of the week, which begins on Monday, and last so many minutes.
#[derive(Debug, Clone, Copy)]
struct Opening {
    begins: i64,
    lasts: i64,
}

#[callgate_sdk::plugin(schema = "config.schema.json")]
impl Plugin for Hours {
    type Config = Config;
    const NAME: &'static str = "hours";

    fn new(config: Config) -> Result<Self, ConfigError> {
        let offset = config.utc_offset.split_at_checked(1).and_then(|(sign, time)| {
            let minutes = minutes(time).filter(|minutes| *minutes <= 14 * 60)?;
            (sign == "+").then_some(minutes).or_else(|| (sign == "-").then_some(-minutes))
        });
        let offset_minutes = offset.ok_or_else(|| {
            ConfigError::at("/utc_offset", format!("{:?} is no offset from UTC", config.utc_offset)).hint("\"+02:00\"")
        })?;
        let hours = config.hours.map(|spans| {
            let openings = spans.iter().enumerate().map(|(index, Object(span))| openings(index, span));
            openings.collect::<Result<Vec<_>, _>>().map(|all| all.concat())
        });
        let except = config.except.into_iter().enumerate().map(|(index, path)| {
            if path.starts_with('/') {
                return Ok(canonical_path(&path).unwrap_or(path));
            }
            Err(ConfigError::at(format!("/except/{index}"), format!("{path:?} is no absolute path")))
        });
        Ok(Self {
            closed: config.closed,
            hours: hours.transpose()?,
            offset_minutes,
            governs: config.governs.into_iter().map(Kind::kinds).collect(),
            except: except.collect::<Result<_, _>>()?,
        })
    }

    // The same whether it is closed or not, so that a reload can flip the switch.
    fn subscriptions(&self, written: EventKinds) -> EventKinds {
        written & self.governs
    }

    fn exec(&mut self, event: &Event, exec: &Exec) -> Verdict {
        // What is run, not who runs it: a shell that is excepted does not open the door to everything.
        let file = &exec.file;
        self.judge(event, if file.canonical { &file.path } else { "" })
    }

    fn exec_fileless(&mut self, event: &Event, _: &Exec) -> Verdict {
        self.judge(event, "")
    }

    fn connect(&mut self, event: &Event, _: &Endpoint) -> Verdict {
        self.judge(event, &event.subject.executable)
    }

    fn send(&mut self, event: &Event, _: &Endpoint) -> Verdict {
        self.judge(event, &event.subject.executable)
    }

    fn bind(&mut self, event: &Event, _: &Endpoint) -> Verdict {
        self.judge(event, &event.subject.executable)
    }

    fn listen(&mut self, event: &Event, _: &Endpoint) -> Verdict {
        self.judge(event, &event.subject.executable)
    }

    fn accept(&mut self, event: &Event, _: &Accepted) -> Verdict {
        self.judge(event, &event.subject.executable)
    }

    fn socket(&mut self, event: &Event, _: &Socket) -> Verdict {
        self.judge(event, &event.subject.executable)
    }

    fn credentials(&mut self, event: &Event, _: &Credentials) -> Verdict {
        self.judge(event, &event.subject.executable)
    }
}

impl Hours {
    fn judge(&self, event: &Event, program: &str) -> Verdict {
        if self.except.iter().any(|except| except == program) {
            return Verdict::Abstain;
        }
        if self.closed {
            return Verdict::deny("hours.closed", "the switch is off").hint("set \"closed\": false");
        }
        let minute = self.minute_of_the_week(event.time_ms);
        match &self.hours {
            Some(hours) if !hours.iter().any(|opening| opening.has(minute)) => {
                let (hour, minute) = (minute / 60 % 24, minute % 60);
                let reason = format!("it is {hour:02}:{minute:02}, which is outside of the hours");
                Verdict::deny("hours.outside", reason).hint("extend hours")
            }
            _ => Verdict::Abstain,
        }
    }

    fn minute_of_the_week(&self, time_ms: u64) -> i64 {
        let minutes = i64::try_from(time_ms / 60_000).unwrap_or(0) + self.offset_minutes;
        // The first of January 1970 was a Thursday.
        (minutes + 3 * DAY).rem_euclid(WEEK)
    }
}

impl Opening {
    fn has(self, minute: i64) -> bool {
        (minute - self.begins).rem_euclid(WEEK) < self.lasts
    }
}

fn openings(index: usize, span: &Span) -> Result<Vec<Opening>, ConfigError> {
    let time = |key: &str, text: &str, most: i64| {
        minutes(text).filter(|minutes| *minutes <= most).ok_or_else(|| {
            ConfigError::at(format!("/hours/{index}/{key}"), format!("{text:?} is no time of the day"))
                .hint("\"08:00\"")
        })
    };
    let (from, to) = (time("from", &span.from, DAY - 1)?, time("to", &span.to, DAY)?);
    let lasts = if to > from { to - from } else { to + DAY - from };
    Ok(span.days.iter().map(|day| Opening { begins: *day as i64 * DAY + from, lasts }).collect())
}

/// Minutes of `hh:mm`.
fn minutes(text: &str) -> Option<i64> {
    let (hours, minutes) = text.split_once(':')?;
    let two = |digits: &str| {
        (digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit()))
            .then(|| digits.parse::<i64>().ok())
            .flatten()
    };
    let (hours, minutes) = (two(hours)?, two(minutes)?);
    (minutes < 60).then_some(hours * 60 + minutes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use callgate_sdk::testing::{Tester, connect, exec, exec_fileless, strategies};

    /// Monday, 1 January 2024, 00:00 UTC, and so many minutes.
    fn monday(minutes: u64) -> u64 {
        (1_704_067_200 + minutes * 60) * 1000
    }

    fn open(config: &str, minutes: u64) -> bool {
        Tester::<Hours>::new(config).unwrap().decide(exec("/bin/ls").time_ms(monday(minutes))) == Verdict::Abstain
    }

    #[test]
    fn within_the_hours_and_not_outside() {
        let config = r#"{"hours": [{"days": ["mon", "fri"], "from": "08:00", "to": "18:00"}]}"#;
        assert!(
            !open(config, 8 * 60 - 1) && open(config, 8 * 60) && open(config, 18 * 60 - 1) && !open(config, 18 * 60)
        );
        assert!(!open(config, 24 * 60 + 9 * 60), "Tuesday");
        assert!(open(config, 4 * 24 * 60 + 9 * 60), "Friday");
    }

    #[test]
    fn hours_go_over_midnight_and_over_the_end_of_the_week() {
        let config = r#"{"hours": [{"days": ["sun"], "from": "22:00", "to": "06:00"}]}"#;
        let sunday = 6 * 24 * 60;
        assert!(
            open(config, sunday + 23 * 60) && open(config, 5 * 60) && !open(config, 6 * 60) && !open(config, 24 * 60)
        );
        assert!(open(r#"{"hours": [{"from": "00:00", "to": "24:00"}]}"#, 1439));
    }

    #[test]
    fn hours_are_those_of_the_offset() {
        let config = r#"{"hours": [{"days": ["mon"], "from": "00:00", "to": "01:00"}], "utc_offset": "+02:00"}"#;
        assert!(!open(config, 0));
        assert!(open(config, 7 * 24 * 60 - 120), "Sunday, 22:00 UTC");
        assert!(open(&config.replace("+02:00", "-05:30"), 5 * 60 + 30));
    }

    #[test]
    fn the_switch_closes_at_any_hour() {
        assert!(open("{}", 0) && !open(r#"{"closed": true}"#, 0));
        let closed = Tester::<Hours>::new(r#"{"closed": true}"#).unwrap();
        assert_eq!(closed.subscriptions(), Tester::<Hours>::new("{}").unwrap().subscriptions(), "a reload can flip it");
    }

    #[test]
    fn what_is_governed_and_what_is_excepted_can_be_said() {
        let config = r#"{"closed": true, "governs": ["exec"], "except": ["/bin/ls"]}"#;
        let mut hours = Tester::<Hours>::new(config).unwrap();
        assert_eq!(hours.decide(connect("10.0.0.1:1")), Verdict::Abstain);
        assert_eq!(hours.decide(exec("/bin/ls")), Verdict::Abstain);
        assert!(hours.decide(exec("/bin/cat").executable("/bin/ls")).denial().is_some());
        assert!(hours.decide(exec("/bin/ls").file(|file| file.canonical = false)).denial().is_some());
        assert!(hours.decide(exec_fileless("/bin/ls")).denial().is_some());
    }

    #[test]
    fn a_mistake_has_its_place() {
        for (config, pointer) in [
            (r#"{"utc_offset": "CET"}"#, "/utc_offset"),
            (r#"{"utc_offset": "+15:00"}"#, "/utc_offset"),
            (r#"{"hours": [{"from": "8:00", "to": "09:00"}]}"#, "/hours/0/from"),
            (r#"{"hours": [{"from": "08:00", "to": "24:01"}]}"#, "/hours/0/to"),
            (r#"{"hours": [{"from": "08:00", "to": "09:00", "days": ["monday"]}]}"#, "/hours/0/days/0"),
            (r#"{"hours": [[]]}"#, "/hours/0"),
            (r#"{"except": ["ls"]}"#, "/except/0"),
        ] {
            let error = Tester::<Hours>::new(config).unwrap_err();
            assert_eq!(error.pointer, pointer, "{config}: {error:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_event_makes_it_panic(event in strategies::event(), time: u64) {
            let event = callgate_sdk::Event { time_ms: time, ..event };
            let config = r#"{"hours": [{"from": "08:00", "to": "18:00"}], "utc_offset": "-14:00"}"#;
            Tester::<Hours>::new(config).unwrap().decide(event);
        }
    }
}
