//! No shells from network servers: a web server, a database or a language runtime that starts a shell is mostly one that has
//! been made to.
//!
//! A shell is denied if the process that asks for it, or one of its ancestors, runs a server, or has run one before it ran something
//! else. Scripts that a server is meant to run can be excepted.

use std::collections::BTreeMap;

use callgate_sdk::{ConfigError, Event, Exec, Glob, Plugin, Subject, Verdict, ancestors, canonical_path};
use callgate_shells::Shells;
use schemars::JsonSchema;
use serde::Deserialize;

/// The plugin, configured.
#[derive(Debug)]
pub struct NoShellFromServers {
    /// By their names.
    named: Vec<Glob>,
    /// By their paths.
    placed: Vec<Glob>,
    shells: Shells,
    except: Vec<String>,
    /// Processes that have run a server: what they run now, and the server.
    former: BTreeMap<u32, (String, String)>,
}

/// How many of those are remembered. An id that is used again mostly runs something else, and then it counts no more.
const FORMER: usize = 10_000;

/// What is a server, what a shell, and what may run nevertheless.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// More servers than those known: names (`gunicorn`) or absolute paths, with `*` and `**`. Of a server in an interpreted
    /// language it is the interpreter that runs (`python3.*`).
    #[schemars(extend("examples" = [["python3.*", "/opt/app/**"]]))]
    servers: Vec<String>,
    /// More names of shells than those known.
    shells: Vec<String>,
    /// Scripts and programs that servers may run although they are shells: absolute paths.
    #[schemars(extend("items" = { "type": "string", "pattern": "^/" }))]
    except: Vec<String>,
}

/// Programs that answer the network. Language runtimes among them run servers and nothing else in most images.
const SERVERS: [&str; 40] = [
    "apache2",
    "beam.smp",
    "caddy",
    "dovecot",
    "envoy",
    "exim4",
    "haproxy",
    "httpd",
    "java",
    "lighttpd",
    "litespeed",
    "mariadbd",
    "master",
    "memcached",
    "mongod",
    "mysqld",
    "named",
    "nginx",
    "node",
    "nodejs",
    "openresty",
    "php-cgi",
    "php-fpm",
    "php-fpm*",
    "postgres",
    "proftpd",
    "puma*",
    "redis-server",
    "rspamd",
    "squid",
    "tomcat*",
    "traefik",
    "unbound",
    "unicorn*",
    "uwsgi*",
    "valkey-server",
    "varnishd",
    "vsftpd",
    "waitress-serve",
    "w3wp",
];

#[callgate_sdk::plugin(schema = "config.schema.json")]
impl Plugin for NoShellFromServers {
    type Config = Config;
    const NAME: &'static str = "no-shell-from-servers";

    fn new(config: Config) -> Result<Self, ConfigError> {
        if let Some(index) = config.servers.iter().position(String::is_empty) {
            return Err(ConfigError::at(format!("/servers/{index}"), "an empty name"));
        }
        let except = config.except.into_iter().enumerate().map(|(index, path)| {
            if path.starts_with('/') {
                return Ok(canonical_path(&path).unwrap_or(path));
            }
            Err(ConfigError::at(format!("/except/{index}"), format!("{path:?} is no absolute path")))
        });
        let (paths, names): (Vec<&str>, Vec<&str>) =
            config.servers.iter().map(String::as_str).partition(|server| server.starts_with('/'));
        Ok(Self {
            named: SERVERS.iter().copied().chain(names).map(Glob::new).collect(),
            placed: paths.into_iter().map(Glob::new).collect(),
            shells: Shells::and(config.shells),
            except: except.collect::<Result<_, _>>()?,
            former: BTreeMap::new(),
        })
    }

    fn exec(&mut self, event: &Event, exec: &Exec) -> Verdict {
        let shell = self.shells.run_by(exec);
        let excepted = exec.file.canonical && self.except.contains(&exec.file.path);
        // Ancestors cost something, and are of interest for shells only.
        let up = if shell.is_some() && !excepted { ancestors() } else { Vec::new() };
        let mut family = [&event.subject].into_iter().chain(&up);
        let Some((pid, server)) = family.find_map(|process| Some((process.pid, self.server(process)?))) else {
            return Verdict::Abstain;
        };
        let Some(shell) = shell.filter(|_| !excepted) else {
            self.remember(event.subject.pid, exec, server);
            return Verdict::Abstain;
        };
        let what = if shell == exec.file.path {
            shell.to_owned()
        } else {
            format!("{}, a script of {shell},", exec.file.path)
        };
        let reason = format!("{what} would run below {server}, process {pid}");
        Verdict::deny("no-shell-from-servers", reason).hint(format!("add {:?} to except", exec.file.path))
    }
}

impl NoShellFromServers {
    /// The server that a process runs, or has run.
    fn server(&self, process: &Subject) -> Option<String> {
        if self.is_server(&process.executable) {
            return Some(process.executable.clone());
        }
        let (runs, server) = self.former.get(&process.pid)?;
        (*runs == process.executable).then(|| server.clone())
    }

    fn remember(&mut self, pid: u32, exec: &Exec, server: String) {
        if self.former.len() >= FORMER && !self.former.contains_key(&pid) {
            self.former.clear();
        }
        let runs = exec.interpreters.last().unwrap_or(&exec.file);
        self.former.insert(pid, (runs.path.clone(), server));
    }

    fn is_server(&self, executable: &str) -> bool {
        let name = executable.rsplit('/').next().unwrap_or_default();
        self.named.iter().any(|glob| glob.matches(name)) || self.placed.iter().any(|glob| glob.matches(executable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use callgate_sdk::testing::{Tester, exec, strategies};

    fn plugin(config: &str) -> Tester<NoShellFromServers> {
        Tester::new(config).unwrap()
    }

    #[test]
    fn a_server_or_its_descendants_start_no_shell() {
        let mut plugin = plugin("{}");
        assert!(plugin.decide(exec("/usr/bin/dash").executable("/usr/sbin/nginx")).denial().is_some());
        let below =
            exec("/usr/bin/bash").executable("/usr/bin/env").ancestor("/usr/bin/perl").ancestor("/usr/sbin/php-fpm8.2");
        assert!(plugin.decide(below).denial().is_some());
        assert!(
            plugin
                .decide(exec("/srv/x.sh").interpreter("/usr/bin/dash").executable("/usr/sbin/nginx"))
                .denial()
                .is_some()
        );
    }

    #[test]
    fn a_server_that_becomes_another_program_is_still_one() {
        let mut plugin = plugin("{}");
        assert_eq!(plugin.decide(exec("/usr/bin/env").executable("/usr/sbin/nginx").pid(7)), Verdict::Abstain);
        assert!(plugin.decide(exec("/usr/bin/dash").executable("/usr/bin/env").pid(7)).denial().is_some());
        assert_eq!(
            plugin.decide(exec("/usr/bin/dash").executable("/usr/bin/make").pid(7)),
            Verdict::Abstain,
            "another process"
        );
        assert_eq!(plugin.decide(exec("/usr/bin/dash").executable("/usr/bin/env").pid(8)), Verdict::Abstain);
        let child = exec("/usr/bin/dash").executable("/usr/bin/perl").pid(9).ancestor("/usr/bin/env");
        assert!(plugin.decide(child.facts(|facts| facts.ancestors[0].pid = 7)).denial().is_some());
    }

    #[test]
    fn other_programs_and_other_shells_are_none_of_its_business() {
        let mut plugin = plugin("{}");
        assert_eq!(plugin.decide(exec("/usr/bin/convert").executable("/usr/sbin/nginx")), Verdict::Abstain);
        assert_eq!(
            plugin.decide(exec("/usr/bin/bash").executable("/usr/bin/make").ancestor("/sbin/init")),
            Verdict::Abstain
        );
    }

    #[test]
    fn servers_shells_and_exceptions_can_be_named() {
        let config = r#"{"servers": ["python3.*", "/opt/app/**"], "shells": ["xonsh"], "except": ["/srv/report.sh"]}"#;
        let mut plugin = plugin(config);
        for server in ["/usr/bin/python3.11", "/opt/app/bin/server"] {
            assert!(plugin.decide(exec("/usr/bin/xonsh").executable(server)).denial().is_some(), "{server}");
        }
        let report = || exec("/srv/report.sh").interpreter("/usr/bin/dash").executable("/usr/bin/python3.11");
        assert_eq!(plugin.decide(report()), Verdict::Abstain);
        assert!(plugin.decide(report().file(|file| file.canonical = false)).denial().is_some());
    }

    #[test]
    fn a_mistake_has_its_place() {
        assert_eq!(Tester::<NoShellFromServers>::new(r#"{"servers": [""]}"#).unwrap_err().pointer, "/servers/0");
        assert_eq!(Tester::<NoShellFromServers>::new(r#"{"except": ["x.sh"]}"#).unwrap_err().pointer, "/except/0");
    }

    proptest::proptest! {
        #[test]
        fn no_event_makes_it_panic(event in strategies::event()) {
            plugin("{}").decide(event);
        }
    }
}
