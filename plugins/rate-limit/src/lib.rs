//! Rate limits: bursts of programs and of connections, and port scans.
//!
//! What is beyond a limit gets `EAGAIN`, and goes through again as soon as less happened within the window. What was refused does
//! not count, so that a program which keeps trying runs at the limit instead of never.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use callgate_sdk::{ConfigError, Endpoint, Event, EventKinds, Exec, Object, Plugin, Verdict, present};
use schemars::JsonSchema;
use serde::Deserialize;

/// The plugin, configured, and what it remembers.
#[derive(Debug)]
pub struct RateLimit {
    exec: Option<Burst>,
    connect: Option<Burst>,
    scan: Option<Scan>,
}

/// Limits. What has none is not intercepted.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How many programs may be started.
    #[serde(deserialize_with = "present")]
    #[schemars(with = "Limit")]
    exec: Option<Object<Limit>>,
    /// How many connections may be made.
    #[serde(deserialize_with = "present")]
    #[schemars(with = "Limit")]
    connect: Option<Object<Limit>>,
    /// How many different targets connections and datagrams may have.
    #[serde(deserialize_with = "present")]
    #[schemars(with = "Targets")]
    scan: Option<Object<Targets>>,
}

/// So many within a time.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Limit {
    /// How many.
    #[schemars(range(min = 1, max = 100_000))]
    most: u32,
    /// Within how many milliseconds.
    #[serde(default = "second")]
    #[schemars(range(min = 1, max = 86_400_000))]
    window_ms: u32,
    /// Whose are counted together.
    #[serde(default)]
    per: Per,
}

/// So many different targets within a time.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Targets {
    /// How many ports of one address.
    #[serde(default = "twenty")]
    #[schemars(range(min = 1, max = 65_535))]
    ports: u32,
    /// How many addresses.
    #[serde(default = "hundred")]
    #[schemars(range(min = 1, max = 100_000))]
    addresses: u32,
    /// Within how many milliseconds.
    #[serde(default = "minute")]
    #[schemars(range(min = 1, max = 86_400_000))]
    window_ms: u32,
    /// Whose are counted together.
    #[serde(default)]
    per: Per,
}

const fn second() -> u32 {
    1000
}
const fn minute() -> u32 {
    60_000
}
const fn twenty() -> u32 {
    20
}
const fn hundred() -> u32 {
    100
}

/// Whose events are counted together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Per {
    /// A process; of a program that is started, the parent of the process that it is started in, since a shell forks first.
    Process,
    /// A user.
    #[default]
    User,
    /// All of the workload.
    Workload,
}

impl Per {
    fn key(self, event: &Event, process: u32) -> u32 {
        match self {
            Self::Process => process,
            Self::User => event.subject.uid,
            Self::Workload => 0,
        }
    }

    fn whose(self, key: u32) -> String {
        match self {
            Self::Process => format!("process {key}"),
            Self::User => format!("user {key}"),
            Self::Workload => "the workload".to_owned(),
        }
    }
}

const EAGAIN: u16 = 11;
/// How many processes or users are remembered. When there are more, those whose windows have passed are forgotten, or all.
const KEYS: usize = 10_000;

/// The largest numbers that make sense: what is remembered takes memory.
fn check(place: &str, values: &[(&str, u32, u32)]) -> Result<(), ConfigError> {
    match values.iter().find(|(_, value, most)| *value == 0 || value > most) {
        Some((key, value, most)) => {
            Err(ConfigError::at(format!("/{place}/{key}"), format!("{value} is not between 1 and {most}")))
        }
        None => Ok(()),
    }
}

const DAY_MS: u32 = 86_400_000;

#[callgate_sdk::plugin(schema = "config.schema.json")]
impl Plugin for RateLimit {
    type Config = Config;
    const NAME: &'static str = "rate-limit";

    fn new(config: Config) -> Result<Self, ConfigError> {
        if config.exec.is_none() && config.connect.is_none() && config.scan.is_none() {
            return Err(ConfigError::at("", "there is no limit").hint("add \"exec\": { \"most\": 100 }"));
        }
        let burst = |place: &str, limit: Option<Object<Limit>>| {
            let Some(Object(limit)) = limit else { return Ok(None) };
            check(place, &[("most", limit.most, 100_000), ("window_ms", limit.window_ms, DAY_MS)])?;
            Ok(Some(Burst { limit, seen: BTreeMap::new() }))
        };
        let scan = match config.scan {
            Some(Object(limit)) => {
                let (ports, addresses) = (("ports", limit.ports, 65_535), ("addresses", limit.addresses, 100_000));
                check("scan", &[ports, addresses, ("window_ms", limit.window_ms, DAY_MS)])?;
                Some(Scan { limit, seen: BTreeMap::new() })
            }
            None => None,
        };
        Ok(Self { exec: burst("exec", config.exec)?, connect: burst("connect", config.connect)?, scan })
    }

    fn subscriptions(&self, mut kinds: EventKinds) -> EventKinds {
        kinds.set(EventKinds::EXEC | EventKinds::EXEC_FILELESS, self.exec.is_some());
        kinds.set(EventKinds::CONNECT, self.connect.is_some() || self.scan.is_some());
        kinds.set(EventKinds::SEND, self.scan.is_some());
        kinds
    }

    fn exec(&mut self, event: &Event, _: &Exec) -> Verdict {
        match &mut self.exec {
            Some(burst) => burst.judge("exec", "programs", event, event.subject.parent),
            None => Verdict::Abstain,
        }
    }

    fn exec_fileless(&mut self, event: &Event, exec: &Exec) -> Verdict {
        self.exec(event, exec)
    }

    fn connect(&mut self, event: &Event, to: &Endpoint) -> Verdict {
        let scan = self.send(event, to);
        match &mut self.connect {
            Some(burst) if scan.denial().is_none() => burst.judge("connect", "connections", event, event.subject.pid),
            _ => scan,
        }
    }

    fn send(&mut self, event: &Event, to: &Endpoint) -> Verdict {
        match (&mut self.scan, to.address.ip()) {
            (Some(scan), Some(target)) => scan.judge(event, target),
            _ => Verdict::Abstain,
        }
    }
}

/// Counts events.
#[derive(Debug)]
struct Burst {
    limit: Limit,
    seen: BTreeMap<u32, VecDeque<u64>>,
}

impl Burst {
    fn judge(&mut self, rule: &str, what: &str, event: &Event, process: u32) -> Verdict {
        let Limit { most, window_ms, per } = self.limit;
        let (now, key) = (event.time_ms, per.key(event, process));
        let since = now.saturating_sub(window_ms.into());
        make_room(&mut self.seen, key, |times| times.back().is_some_and(|last| *last > since));
        let times = self.seen.entry(key).or_default();
        while times.front().is_some_and(|first| *first <= since) {
            times.pop_front();
        }
        if times.len() < most as usize {
            times.push_back(now);
            return Verdict::Abstain;
        }
        let reason = format!("{} has started {most} {what} within {window_ms} ms", per.whose(key));
        let reason = if rule == "connect" { reason.replace("started", "made") } else { reason };
        Verdict::deny(format!("rate-limit.{rule}"), reason).errno(EAGAIN).hint(format!("raise {rule}.most"))
    }
}

/// Counts targets.
#[derive(Debug)]
struct Scan {
    limit: Targets,
    /// When a target was last used.
    seen: BTreeMap<u32, BTreeMap<(IpAddr, u16), u64>>,
}

impl Scan {
    fn judge(&mut self, event: &Event, (ip, port): (IpAddr, u16)) -> Verdict {
        let Targets { ports, addresses, window_ms, per } = self.limit;
        let (now, key) = (event.time_ms, per.key(event, event.subject.pid));
        let since = now.saturating_sub(window_ms.into());
        make_room(&mut self.seen, key, |targets| targets.values().any(|last| *last > since));
        let targets = self.seen.entry(key).or_default();
        if let Some(last) = targets.get_mut(&(ip, port))
            && *last > since
        {
            *last = now;
            return Verdict::Abstain;
        }
        targets.retain(|_, last| *last > since);
        let ports_of = |ip: IpAddr| targets.range((ip, 0)..=(ip, u16::MAX)).count();
        if ports_of(ip) >= ports as usize {
            let reason = format!("{} has used {ports} ports of {ip} within {window_ms} ms", per.whose(key));
            return Verdict::deny("rate-limit.port-scan", reason).errno(EAGAIN).hint("raise scan.ports");
        }
        let known = targets.keys().fold((0, None), |(count, last), (ip, _)| match last {
            Some(last) if last == ip => (count, Some(ip)),
            _ => (count + 1, Some(ip)),
        });
        if ports_of(ip) == 0 && known.0 >= addresses {
            let reason = format!("{} has used {addresses} addresses within {window_ms} ms", per.whose(key));
            return Verdict::deny("rate-limit.address-scan", reason).errno(EAGAIN).hint("raise scan.addresses");
        }
        targets.insert((ip, port), now);
        Verdict::Abstain
    }
}

/// Forgets those that are not `current`, if there are too many to remember one more; all, if that does not help.
fn make_room<T>(seen: &mut BTreeMap<u32, T>, key: u32, current: impl Fn(&T) -> bool) {
    if seen.len() >= KEYS && !seen.contains_key(&key) {
        seen.retain(|_, it| current(it));
        if seen.len() >= KEYS {
            seen.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use callgate_sdk::testing::{Tester, connect, exec, send, strategies, udp};

    fn plugin(config: &str) -> Tester<RateLimit> {
        Tester::new(config).unwrap()
    }

    #[test]
    fn beyond_the_limit_there_is_a_pause_and_then_it_goes_on() {
        let mut plugin = plugin(r#"{"exec": {"most": 2, "window_ms": 100}}"#);
        let at = |time| exec("/bin/ls").time_ms(time);
        assert_eq!(plugin.decide(at(1000)), Verdict::Abstain);
        assert_eq!(plugin.decide(at(1050)), Verdict::Abstain);
        let third = plugin.decide(at(1099));
        assert_eq!((third.rule(), third.denial().unwrap().errno), (Some("rate-limit.exec"), Some(EAGAIN)));
        assert_eq!(plugin.decide(at(1100)), Verdict::Abstain, "the first has left the window");
        assert!(plugin.decide(at(1149)).denial().is_some(), "what was refused did not count, the rest does");
    }

    #[test]
    fn users_processes_or_all_of_the_workload_are_counted_together() {
        let two = |per: &str, one: (u32, u32), other: (u32, u32)| {
            let mut plugin = plugin(&format!(r#"{{"connect": {{"most": 1, "per": "{per}"}}}}"#));
            let by = |(pid, uid)| connect("10.0.0.1:1").pid(pid).uid(uid);
            assert_eq!(plugin.decide(by(one)), Verdict::Abstain);
            plugin.decide(by(other)).denial().is_some()
        };
        assert!(two("user", (1, 7), (2, 7)) && !two("user", (1, 7), (1, 8)));
        assert!(two("process", (1, 7), (1, 8)) && !two("process", (1, 7), (2, 7)));
        assert!(two("workload", (1, 7), (2, 8)));
    }

    #[test]
    fn programs_are_counted_by_the_process_that_forks_for_them() {
        let mut plugin = plugin(r#"{"exec": {"most": 1, "per": "process"}}"#);
        assert_eq!(plugin.decide(exec("/bin/ls").pid(2)), Verdict::Abstain);
        assert!(plugin.decide(exec("/bin/ls").pid(3)).denial().is_some());
    }

    #[test]
    fn many_ports_or_many_addresses_are_a_scan_and_many_connections_are_not() {
        let mut plugin = plugin(r#"{"scan": {"ports": 3, "addresses": 2}}"#);
        for port in [80, 81, 82, 80, 80, 81] {
            assert_eq!(plugin.decide(connect(format!("10.0.0.1:{port}").as_str())), Verdict::Abstain);
        }
        assert_eq!(plugin.decide(connect("10.0.0.1:83")).rule(), Some("rate-limit.port-scan"));
        assert_eq!(plugin.decide(send(udp("10.0.0.2:53"))), Verdict::Abstain);
        assert_eq!(plugin.decide(send(udp("10.0.0.3:53"))).rule(), Some("rate-limit.address-scan"));
        assert_eq!(plugin.decide(connect("10.0.0.2:54")), Verdict::Abstain, "an address that is known");
        let later = plugin.decide(connect("10.0.0.3:53").time_ms(1_500_000_000_000 + 60_000));
        assert_eq!(later, Verdict::Abstain);
    }

    #[test]
    fn what_has_no_limit_is_not_intercepted() {
        assert_eq!(plugin(r#"{"scan": {}}"#).subscriptions(), EventKinds::CONNECT | EventKinds::SEND);
        assert_eq!(plugin(r#"{"exec": {"most": 1}}"#).subscriptions(), EventKinds::EXEC | EventKinds::EXEC_FILELESS);
    }

    #[test]
    fn a_mistake_has_its_place() {
        for (config, pointer) in [
            ("{}", ""),
            (r#"{"exec": {}}"#, "/exec"),
            (r#"{"exec": {"most": 0}}"#, "/exec/most"),
            (r#"{"connect": {"most": 1, "per": "host"}}"#, "/connect/per"),
            (r#"{"scan": {"ports": 70000}}"#, "/scan/ports"),
            (r#"{"scan": null}"#, "/scan"),
        ] {
            assert_eq!(Tester::<RateLimit>::new(config).unwrap_err().pointer, pointer, "{config}");
        }
    }

    #[test]
    fn what_it_remembers_is_bounded() {
        let mut plugin = plugin(r#"{"connect": {"most": 5, "per": "process"}}"#);
        for pid in 0..30_000 {
            plugin.decide(connect("10.0.0.1:1").pid(pid));
        }
        assert!(plugin.plugin().connect.as_ref().unwrap().seen.len() <= KEYS);
    }

    proptest::proptest! {
        #[test]
        fn no_more_than_the_limit_gets_through_in_any_window(mut times in proptest::collection::vec(0..1000_u64, 1..60)) {
            times.sort_unstable();
            let mut plugin = plugin(r#"{"exec": {"most": 3, "window_ms": 100}}"#);
            let through: Vec<u64> = times
                .into_iter()
                .filter(|time| plugin.decide(exec("/bin/ls").time_ms(1000 + time)).denial().is_none())
                .collect();
            assert!(through.windows(4).all(|four| four[3] - four[0] >= 100), "{through:?}");
        }

        #[test]
        fn no_event_makes_it_panic(events in proptest::collection::vec(strategies::event(), 1..20)) {
            let mut plugin = plugin(r#"{"exec": {"most": 3}, "connect": {"most": 2}, "scan": {"ports": 1, "addresses": 1}}"#);
            for event in events {
                plugin.decide(event);
            }
        }
    }
}
