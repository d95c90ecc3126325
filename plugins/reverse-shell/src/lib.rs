//! Reverse shells: a shell whose standard input, output or errors are a network socket, and programs that such a shell starts.
//!
//! `bash -i >& /dev/tcp/…` becomes one only after it has been started, so what a shell starts is looked at too. A shell behind a
//! pair of pipes or a pseudo-terminal, whose other end some program relays, is not seen.

use callgate_sdk::{
    ConfigError, Endpoint, Event, EventKinds, Exec, Plugin, Stream, StreamSocket, Verdict, standard_stream,
};
use callgate_shells::Shells;
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;

/// The plugin, configured.
#[derive(Debug)]
pub struct ReverseShell {
    shells: Shells,
    except_peers: Vec<IpNet>,
    unix: bool,
    shells_may_connect: bool,
}

/// What counts as a reverse shell.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// More names of programs to treat as shells: interpreters that take commands (`python3.11`), for example.
    #[schemars(extend("examples" = [["python3.11", "perl"]]))]
    shells: Vec<String>,
    /// Networks whose sockets are no matter, such as those of services that inetd starts.
    #[schemars(with = "Vec<String>", extend("examples" = [["127.0.0.0/8", "::1/128"]]))]
    except_peers: Vec<IpNet>,
    /// Whether sockets of AF_UNIX count too. Some programs (sshd among them) give them to the shells that they start.
    unix: bool,
    /// Whether a shell may connect by itself, as bash does with `/dev/tcp`. Scripts that wait for a port do so.
    shells_may_connect: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { shells: Vec::new(), except_peers: Vec::new(), unix: false, shells_may_connect: true }
    }
}

const AF_UNIX: u16 = 1;

#[callgate_sdk::plugin(schema = "config.schema.json")]
impl Plugin for ReverseShell {
    type Config = Config;
    const NAME: &'static str = "reverse-shell";

    fn new(Config { shells, except_peers, unix, shells_may_connect }: Config) -> Result<Self, ConfigError> {
        Ok(Self { shells: Shells::and(shells), except_peers, unix, shells_may_connect })
    }

    fn subscriptions(&self, mut kinds: EventKinds) -> EventKinds {
        kinds.set(EventKinds::CONNECT, !self.shells_may_connect);
        kinds
    }

    fn exec(&mut self, event: &Event, exec: &Exec) -> Verdict {
        let by_shell = self.shells.is(&event.subject.executable);
        let what = match self.shells.run_by(exec) {
            Some(shell) => format!("{shell} would be a shell"),
            None if by_shell => format!("{} would be started by a shell", exec.file.path),
            None => return Verdict::Abstain,
        };
        let found = (0..3).find_map(|number| self.suspicious(standard_stream(number)).map(|peer| (number, peer)));
        match found {
            Some((number, peer)) => {
                let stream = ["input", "output", "errors"][number as usize];
                let reason = format!("{what} whose standard {stream} is a socket{peer}");
                Verdict::deny("reverse-shell.streams", reason).hint("add the peer's network to except_peers")
            }
            None => Verdict::Abstain,
        }
    }

    fn exec_fileless(&mut self, event: &Event, exec: &Exec) -> Verdict {
        self.exec(event, exec)
    }

    fn connect(&mut self, event: &Event, to: &Endpoint) -> Verdict {
        let shell = &event.subject.executable;
        match to.address.ip() {
            Some((ip, port)) if self.shells.is(shell) && !self.excepted(ip) => {
                let reason = format!("{shell}, a shell, would connect to {ip} port {port} by itself");
                Verdict::deny("reverse-shell.connect", reason).hint("set \"shells_may_connect\": true")
            }
            _ => Verdict::Abstain,
        }
    }
}

impl ReverseShell {
    /// If it is one that counts: where it leads, for a person.
    fn suspicious(&self, stream: Stream) -> Option<String> {
        let Stream::Socket(StreamSocket { socket, peer }) = stream else { return None };
        if socket.family == AF_UNIX {
            return self.unix.then(String::new);
        }
        match peer.and_then(|peer| peer.ip()) {
            Some((ip, _)) if self.excepted(ip) => None,
            Some((ip, port)) => Some(format!(" to {ip} port {port}")),
            None => Some(String::new()),
        }
    }

    fn excepted(&self, ip: std::net::IpAddr) -> bool {
        self.except_peers.iter().any(|net| net.contains(&ip))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use callgate_sdk::testing::{Tester, connect, exec, strategies};

    fn plugin(config: &str) -> Tester<ReverseShell> {
        Tester::new(config).unwrap()
    }

    #[test]
    fn a_shell_on_a_socket_does_not_start() {
        let mut plugin = plugin("{}");
        let verdict =
            plugin.decide(exec("/usr/bin/bash").executable("/usr/bin/python3.11").streams_to("192.0.2.1:4444"));
        assert_eq!(verdict.rule(), Some("reverse-shell.streams"));
        assert!(verdict.denial().unwrap().reason.contains("input is a socket to 192.0.2.1 port 4444"));
        let one = Stream::Socket(StreamSocket {
            socket: callgate_sdk::Socket { family: 10, kind: 1, protocol: 6 },
            peer: None,
        });
        assert!(plugin.decide(exec("/usr/bin/dash").stream(2, one)).denial().is_some(), "one stream is enough");
    }

    #[test]
    fn nor_does_what_a_shell_on_a_socket_starts() {
        let mut plugin = plugin("{}");
        let id = || exec("/usr/bin/id").executable("/usr/bin/bash");
        assert_eq!(plugin.decide(id().streams_to("192.0.2.1:4444")).rule(), Some("reverse-shell.streams"));
        assert_eq!(plugin.decide(id()), Verdict::Abstain);
        assert_eq!(plugin.decide(id().executable("/usr/sbin/nginx").streams_to("192.0.2.1:1")), Verdict::Abstain);
    }

    #[test]
    fn terminals_pipes_and_unix_sockets_are_left_alone() {
        for stream in [Stream::Pipe, Stream::Terminal("/dev/pts/0".into()), Stream::Closed, Stream::Unknown] {
            assert_eq!(plugin("{}").decide(exec("/usr/bin/bash").stream(0, stream)), Verdict::Abstain);
        }
        assert_eq!(plugin("{}").decide(exec("/usr/bin/bash").streams_to("/run/x")), Verdict::Abstain);
        assert!(plugin(r#"{"unix": true}"#).decide(exec("/usr/bin/bash").streams_to("/run/x")).denial().is_some());
    }

    #[test]
    fn peers_can_be_excepted_and_more_shells_named() {
        let mut plugin = plugin(r#"{"except_peers": ["10.0.0.0/8"], "shells": ["perl"]}"#);
        assert_eq!(plugin.decide(exec("/usr/bin/bash").streams_to("10.1.1.1:1")), Verdict::Abstain);
        assert!(plugin.decide(exec("/usr/bin/perl").streams_to("192.0.2.1:1")).denial().is_some());
        let error = Tester::<ReverseShell>::new(r#"{"except_peers": ["10.0.0.0/8", "x"]}"#).unwrap_err();
        assert_eq!(error.pointer, "/except_peers/1");
    }

    #[test]
    fn shells_connect_only_if_they_may() {
        let dev_tcp = || connect("192.0.2.1:4444").executable("/usr/bin/bash");
        assert_eq!(plugin("{}").decide(dev_tcp()), Verdict::Abstain);
        let mut strict = plugin(r#"{"shells_may_connect": false}"#);
        assert_eq!(strict.decide(dev_tcp()).rule(), Some("reverse-shell.connect"));
        assert_eq!(strict.decide(dev_tcp().executable("/usr/bin/curl")), Verdict::Abstain);
    }

    proptest::proptest! {
        #[test]
        fn no_event_makes_it_panic(event in strategies::event()) {
            plugin(r#"{"shells_may_connect": false, "unix": true}"#).decide(event);
        }
    }
}
