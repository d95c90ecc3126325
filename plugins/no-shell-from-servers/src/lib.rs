//! No shells from network servers: a web server, a database or a language runtime that starts a shell is mostly one that has
//! been made to.
//!
//! A shell is denied if the process that asks for it, or one of its ancestors, runs a server. Scripts that a server is meant to
//! run can be excepted.

use callgate_sdk::{ConfigError, Event, Exec, Plugin, Verdict, ancestors, canonical_path};
use callgate_shells::Shells;
use glob_match::glob_match;
use schemars::JsonSchema;
use serde::Deserialize;

/// The plugin, configured.
#[derive(Debug)]
pub struct NoShellFromServers {
    servers: Vec<String>,
    shells: Shells,
    except: Vec<String>,
}

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
        Ok(Self {
            servers: config.servers,
            shells: Shells::and(config.shells),
            except: except.collect::<Result<_, _>>()?,
        })
    }

    fn exec(&mut self, event: &Event, exec: &Exec) -> Verdict {
        let Some(shell) = self.shells.run_by(exec) else { return Verdict::Abstain };
        if exec.file.canonical && self.except.contains(&exec.file.path) {
            return Verdict::Abstain;
        }
        let up = ancestors();
        let mut family = [&event.subject].into_iter().chain(&up);
        let Some(server) = family.find(|process| self.is_server(&process.executable)) else { return Verdict::Abstain };
        let what = if shell == exec.file.path {
            shell.to_owned()
        } else {
            format!("{}, a script of {shell},", exec.file.path)
        };
        let reason = format!("{what} would run below {}, process {}", server.executable, server.pid);
        Verdict::deny("no-shell-from-servers", reason).hint(format!("add {:?} to except", exec.file.path))
    }
}

impl NoShellFromServers {
    fn is_server(&self, executable: &str) -> bool {
        let name = executable.rsplit('/').next().unwrap_or_default();
        let is = |pattern: &str| glob_match(pattern, if pattern.starts_with('/') { executable } else { name });
        SERVERS.iter().any(|pattern| is(pattern)) || self.servers.iter().any(|pattern| is(pattern))
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
