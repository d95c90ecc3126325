//! User switching: which programs may become which users and groups. Others stay who they are.
//!
//! Giving up rights for good is no switch: a process that keeps only its own effective user and group is let through.

use callgate_sdk::{ConfigError, Credentials, Event, Glob, Object, Plugin, Verdict, present};
use schemars::JsonSchema;
use serde::Deserialize;

/// The plugin, configured.
#[derive(Debug)]
pub struct UserSwitch {
    switches: Vec<Switch>,
}

/// Who may become whom.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What is foreseen. A change is allowed if one of them covers all of it.
    #[schemars(with = "Vec<Switch>")]
    switches: Vec<Object<Switch>>,
}

/// Some programs and whom they may become.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Switch {
    /// Absolute paths of programs, with `*` and `**`. Absent: any.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Vec<String>", extend("items" = { "type": "string", "pattern": "^/" }))]
    programs: Option<Vec<String>>,
    /// Users who may. Absent: any.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Vec<u32>")]
    from: Option<Vec<u32>>,
    /// Users whom they may become.
    #[serde(default)]
    users: Vec<u32>,
    /// Groups that they may become members of.
    #[serde(default)]
    groups: Vec<u32>,
}

#[callgate_sdk::plugin(schema = "config.schema.json")]
impl Plugin for UserSwitch {
    type Config = Config;
    const NAME: &'static str = "user-switch";

    fn new(config: Config) -> Result<Self, ConfigError> {
        for (index, Object(switch)) in config.switches.iter().enumerate() {
            let programs = switch.programs.iter().flatten();
            if let Some((position, program)) = programs.enumerate().find(|(_, program)| !program.starts_with('/')) {
                let at = format!("/switches/{index}/programs/{position}");
                return Err(ConfigError::at(at, format!("{program:?} is no absolute path")));
            }
            if switch.users.is_empty() && switch.groups.is_empty() {
                return Err(
                    ConfigError::at(format!("/switches/{index}"), "nobody to become").hint("add \"users\": [33]")
                );
            }
        }
        Ok(Self { switches: config.switches.into_iter().map(|Object(switch)| switch).collect() })
    }

    fn credentials(&mut self, event: &Event, change: &Credentials) -> Verdict {
        let subject = &event.subject;
        // Of those that are its own already, nothing is gained.
        let users: Vec<u32> = change.uids.iter().copied().filter(|uid| *uid != subject.uid).collect();
        let groups = change.gids.iter().chain(change.groups.iter().flatten()).copied();
        let groups: Vec<u32> = groups.filter(|gid| *gid != subject.gid).collect();
        if users.is_empty() && groups.is_empty() {
            return Verdict::Abstain;
        }
        let covers = |switch: &Switch| {
            switch.may(&subject.executable, subject.uid)
                && users.iter().all(|uid| switch.users.contains(uid))
                && groups.iter().all(|gid| switch.groups.contains(gid))
        };
        if self.switches.iter().any(covers) {
            return Verdict::Abstain;
        }
        let rule = if subject.uid != 0 && users.contains(&0) { "user-switch.root" } else { "user-switch.not-foreseen" };
        let become_whom = [("user", &users), ("group", &groups)];
        let whom = become_whom.iter().flat_map(|(what, ids)| ids.iter().map(move |id| format!("{what} {id}")));
        let whom: Vec<String> = whom.take(8).collect();
        let reason = format!("{} of user {} would become {}", subject.executable, subject.uid, whom.join(", "));
        Verdict::deny(rule, reason).hint("add the program, the users and the groups to switches")
    }
}

impl Switch {
    fn may(&self, program: &str, uid: u32) -> bool {
        let program =
            self.programs.as_ref().is_none_or(|list| list.iter().any(|glob| Glob::new(glob).matches(program)));
        program && self.from.as_ref().is_none_or(|from| from.contains(&uid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use callgate_sdk::testing::{Tester, credentials, strategies};

    fn plugin(config: &str) -> Tester<UserSwitch> {
        Tester::new(config).unwrap()
    }

    const NGINX: &str =
        r#"{"switches": [{"programs": ["/usr/sbin/nginx"], "from": [0], "users": [33], "groups": [33, 4]}]}"#;

    #[test]
    fn without_a_configuration_everybody_stays_who_he_is() {
        let mut plugin = plugin("{}");
        assert_eq!(plugin.decide(credentials("setuid").uids([33])).rule(), Some("user-switch.not-foreseen"));
        assert_eq!(plugin.decide(credentials("setresuid").uid(33).uids([0, 33])).rule(), Some("user-switch.root"));
        assert_eq!(plugin.decide(credentials("setgroups").groups([0, 27])).rule(), Some("user-switch.not-foreseen"));
        assert_eq!(plugin.decide(credentials("setuid").uid(33).uids([33])), Verdict::Abstain);
        assert_eq!(plugin.decide(credentials("setgroups").groups([])), Verdict::Abstain);
    }

    #[test]
    fn what_is_foreseen_is_let_through_as_a_whole() {
        let mut plugin = plugin(NGINX);
        let nginx = |call| credentials(call).executable("/usr/sbin/nginx");
        assert_eq!(plugin.decide(nginx("setresuid").uids([33, 33, 0])), Verdict::Abstain);
        assert_eq!(plugin.decide(nginx("setgroups").groups([33, 4])), Verdict::Abstain);
        assert!(plugin.decide(nginx("setgroups").groups([33, 27])).denial().is_some());
        assert!(plugin.decide(nginx("setuid").uids([1000])).denial().is_some());
        assert!(plugin.decide(credentials("setuid").uids([33])).denial().is_some(), "another program");
        assert!(plugin.decide(nginx("setuid").uid(5).uids([33])).denial().is_some(), "another user");
    }

    #[test]
    fn a_mistake_has_its_place() {
        for (config, pointer) in [
            (r#"{"switches": [{"programs": ["/a", "b"], "users": [1]}]}"#, "/switches/0/programs/1"),
            (r#"{"switches": [{"from": [0]}]}"#, "/switches/0"),
            (r#"{"switches": [{"users": [-1]}]}"#, "/switches/0/users/0"),
            (r#"{"switches": [{"users": [1], "from": null}]}"#, "/switches/0/from"),
        ] {
            assert_eq!(Tester::<UserSwitch>::new(config).unwrap_err().pointer, pointer, "{config}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nobody_becomes_root_by_mistake(event in strategies::event()) {
            let verdict = plugin(NGINX).decide(event.clone());
            if let callgate_sdk::Action::Credentials(change) = &event.action
                && change.uids.contains(&0)
                && event.subject.uid != 0
            {
                assert_eq!(verdict.rule(), Some("user-switch.root"));
            }
        }
    }
}
