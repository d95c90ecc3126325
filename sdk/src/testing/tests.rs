//! The harness itself.

use super::*;
use crate::{Address, Endpoint, digest, environment, names, standard_stream, started_ms};

/// Says what it is told.
#[derive(Debug)]
struct Echo {
    path: Option<String>,
    idle: bool,
}

#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct Config {
    /// A path.
    path: String,
    /// Whether connections are none of its business.
    #[serde(default)]
    idle: bool,
}

#[crate::plugin]
impl Plugin for Echo {
    type Config = Config;

    fn new(config: Config) -> Result<Self, ConfigError> {
        if config.path.is_empty() {
            return Err(ConfigError::at("/path", "an empty path"));
        }
        Ok(Self { path: crate::canonical_path(&config.path), idle: config.idle })
    }

    fn subscriptions(&self, written: EventKinds) -> EventKinds {
        if self.idle { written - EventKinds::CONNECT } else { written }
    }

    fn exec(&mut self, event: &Event, exec: &Exec) -> Verdict {
        let later = crate::canonical_path("/never/asked/for");
        crate::log(Level::Info, &format!("{} {:?} {later:?}", event.sequence, self.path));
        #[cfg(feature = "log")]
        log::warn!("by {}", "log");
        #[cfg(feature = "tracing")]
        tracing::debug!(number = 1, "by tracing");
        if let Some(fact) = exec.arguments.get(1) {
            let known = match fact.as_str() {
                "ancestors" => format!("{:?}", crate::ancestors().iter().map(|it| &it.executable).collect::<Vec<_>>()),
                "file" => format!("{:?}", digest(FileRole::File)),
                "loader" => format!("{:?}", digest(FileRole::Loader)),
                "interpreter" => format!("{:?}", digest(FileRole::Interpreter(0))),
                "environment" => format!("{:?} {:?}", environment("A"), environment("B")),
                "stream" => format!("{:?} {:?}", standard_stream(0), standard_stream(1)),
                "names" => format!("{:?}", names()),
                "started" => format!("{}", started_ms()),
                "flood" => (0..300).fold(0, |most, _| started_ms().max(most)).to_string(),
                other => panic!("{other}"),
            };
            return Verdict::deny("fact", known);
        }
        Verdict::Abstain
    }

    fn connect(&mut self, _: &Event, to: &Endpoint) -> Verdict {
        Verdict::deny("connect", format!("{:?}", to.address.ip()))
    }
}

fn tester() -> Tester<Echo> {
    Tester::new(r#"{"path": "/a"}"#).unwrap()
}

#[test]
fn methods_that_are_written_are_subscribed_to_unless_the_plugin_narrows_them() {
    assert_eq!(tester().subscriptions(), EventKinds::EXEC | EventKinds::CONNECT);
    assert_eq!(tester().decide(send("10.0.0.1:1")), Verdict::Abstain);
    let reason = |verdict: Verdict| verdict.denial().unwrap().reason.clone();
    assert_eq!(reason(tester().decide(connect("[::ffff:10.0.0.1]:1"))), "Some((10.0.0.1, 1))");
    assert_eq!(reason(tester().decide(connect("/run/x"))), "None");
    let mut idle = Tester::<Echo>::new(r#"{"path": "/a", "idle": true}"#).unwrap();
    assert_eq!(idle.subscriptions(), EventKinds::EXEC);
    assert_eq!(idle.decide(connect("10.0.0.1:1")), Verdict::Abstain);
}

#[test]
fn the_name_and_the_version_are_the_crates() {
    assert_eq!((Echo::NAME, Echo::VERSION), ("callgate-sdk", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_mistake_in_the_configuration_has_its_place() {
    for (config, pointer, hint) in [
        (r#"{"pth": "/a"}"#, "/pth", Some("did you mean \"path\"?")),
        (r#"{"path": 1}"#, "/path", None),
        (r#"{"path": ""}"#, "/path", None),
        (r#"["/a"]"#, "", None),
    ] {
        let error = Tester::<Echo>::new(config).unwrap_err();
        assert_eq!((error.pointer.as_str(), error.hint.as_deref()), (pointer, hint), "{config}: {error:?}");
    }
}

#[test]
fn the_host_answers_what_it_was_told() {
    let told = exec("/bin/x")
        .interpreter("/bin/sh")
        .ancestor("/bin/parent")
        .ancestor("/sbin/init")
        .digest("/bin/x", "aa")
        .variable("A", "1")
        .stream(0, Stream::Pipe)
        .name("db")
        .started_ms(7);
    for (fact, known) in [
        ("ancestors", r#"["/bin/parent", "/sbin/init"]"#),
        ("file", r#"Ok("aa")"#),
        ("loader", r#"Err("the event has no such file")"#),
        ("interpreter", r#"Err("the digest of /bin/sh was not given")"#),
        ("environment", r#"Some("1") None"#),
        ("stream", "Stream::Pipe Stream::Unknown"),
        ("names", r#"["db"]"#),
        ("started", "7"),
    ] {
        let verdict = tester().decide(told.clone().arguments(["x", fact]));
        assert_eq!(verdict.denial().unwrap().reason, known);
    }
}

#[test]
fn paths_are_those_of_the_host_and_settled_with_the_configuration() {
    let host = Host::new().link("/a", "/b").missing("/c");
    let mut plugin = Tester::<Echo>::with_host(host.clone(), r#"{"path": "/a"}"#).unwrap();
    plugin.decide(exec("/bin/x"));
    assert_eq!(plugin.log()[0], (Level::Info, r#"1 Some("/b") None"#.to_owned()));
    let plugin = Tester::<Echo>::with_host(host, r#"{"path": "/c"}"#).unwrap();
    assert_eq!(plugin.plugin().path, None);
}

#[test]
fn what_logging_crates_are_told_is_in_the_log() {
    let mut plugin = tester();
    plugin.decide(exec("/bin/x"));
    let log = |level, text: &str| plugin.log().contains(&(level, text.to_owned()));
    assert!(!cfg!(feature = "log") || log(Level::Warn, "by log"), "{:?}", plugin.log());
    assert!(!cfg!(feature = "tracing") || log(Level::Debug, "by tracing number=1"), "{:?}", plugin.log());
}

#[test]
#[should_panic(expected = "may not ask for more than 256 facts")]
fn a_plugin_that_keeps_asking_is_stopped() {
    tester().decide(exec("/bin/x").arguments(["x", "flood"]));
}

#[test]
fn a_schema_that_is_not_current_is_written_anew() {
    let directory = std::env::temp_dir().join(format!("callgate-sdk-schema-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let file = directory.join("config.schema.json");
    let check = || std::panic::catch_unwind(|| check_schema::<Config>(file.to_str().unwrap()));
    assert!(check().is_err());
    assert!(check().is_ok());
    let schema: serde_json::Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(schema["properties"]["path"]["description"], "A path.");
    assert_eq!(schema["additionalProperties"], false);
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn ip_addresses_are_what_they_were_made_of() {
    for text in ["10.0.0.1:443", "[2001:db8::1]:1"] {
        let address: std::net::SocketAddr = text.parse().unwrap();
        assert_eq!(Address::from(address).ip(), Some((address.ip(), address.port())));
    }
}

#[cfg(feature = "proptest")]
proptest::proptest! {
    #[test]
    fn any_event_is_decided(events in proptest::collection::vec(strategies::event(), 1..8)) {
        let mut plugin = Tester::<Echo>::new(r#"{"path": "/a"}"#).unwrap();
        for mut event in events {
            if let Action::Exec(exec) = &mut event.action {
                exec.arguments.truncate(1);
                exec.arguments.resize(1, String::new());
            }
            plugin.decide(event);
        }
    }
}
