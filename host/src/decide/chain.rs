//! The plugins of a policy, and how their verdicts make one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::memory::Memory;
use super::{Decision, Denial, Facts, Failure, Said, Verdict};
use crate::event::{Event, EventKind, EventKinds};
use crate::plugin::{Engine, LoadError, Plugin};
use crate::policy::{DefaultVerdict, Mode, OnFailure, Policy};

/// The name under which the host itself decides.
const HOST: &str = "callgate";

/// What the chain asks: a [`Plugin`], or in tests what stands for one.
pub trait Judge {
    /// The name in records.
    fn name(&self) -> &str;
    /// The kinds of event that it wants to be asked about.
    fn subscriptions(&self) -> EventKinds;
    /// Its verdict.
    ///
    /// # Errors
    /// It gave none.
    fn decide(&mut self, event: &Event, facts: &Arc<dyn Facts>) -> Result<Said, Failure>;
}

impl Judge for Plugin {
    fn name(&self) -> &str {
        self.name()
    }

    fn subscriptions(&self) -> EventKinds {
        self.subscriptions()
    }

    fn decide(&mut self, event: &Event, facts: &Arc<dyn Facts>) -> Result<Said, Failure> {
        self.decide(event, facts)
    }
}

/// The plugins of a policy in its order.
pub struct Chain<P = Plugin> {
    links: Vec<Link<P>>,
    default: DefaultVerdict,
    /// Kinds on which some verdict counts: on no other is anything denied.
    governed: EventKinds,
    sequence: u64,
    memory: Memory,
}

struct Link<P> {
    plugin: P,
    subscriptions: EventKinds,
    on_failure: OnFailure,
    mode: Mode,
}

/// A plugin of a policy cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("plugin {name:?}: {source}")]
pub struct ChainError {
    /// Its position in the policy's list.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Why.
    pub source: LoadError,
}

impl Chain {
    /// Loads the plugins of `policy`. `builtin` is the code of the built-in one, compiled ahead of time. The engine's clock
    /// must run.
    ///
    /// # Errors
    /// The first plugin that cannot be used, and why.
    pub fn load(engine: &Engine, policy: &Policy, builtin: &'static [u8]) -> Result<Self, ChainError> {
        let load = |(index, settings)| match Plugin::load(engine, settings, builtin) {
            Ok(plugin) => Ok((plugin, settings.on_failure, settings.mode)),
            Err(source) => Err(ChainError { index, name: settings.name.clone(), source }),
        };
        let plugins: Vec<_> = policy.plugins.iter().enumerate().map(load).collect::<Result<_, _>>()?;
        Ok(Self::of(plugins, policy.default))
    }

    /// Goes on where `old` was: with its numbers, and the instances of those plugins that are the same in both.
    pub fn take_over(&mut self, old: &mut Self) {
        self.sequence = old.sequence;
        for link in &mut self.links {
            if let Some(same) = old.links.iter_mut().find(|other| other.plugin.is_like(&link.plugin)) {
                std::mem::swap(&mut link.plugin, &mut same.plugin);
            }
        }
    }

    /// The plugins.
    pub fn plugins(&self) -> impl Iterator<Item = &Plugin> {
        self.links.iter().map(|link| &link.plugin)
    }
}

impl<P: Judge> Chain<P> {
    /// A chain of these plugins.
    pub fn of(plugins: impl IntoIterator<Item = (P, OnFailure, Mode)>, default: DefaultVerdict) -> Self {
        let links: Vec<_> = plugins
            .into_iter()
            .map(|(plugin, on_failure, mode)| Link { subscriptions: plugin.subscriptions(), plugin, on_failure, mode })
            .collect();
        let governed = governed(links.iter().filter(|link| link.mode == Mode::Enforce));
        Self { links, default, governed, sequence: 0, memory: Memory::default() }
    }

    /// The kinds of event that must be brought before the chain.
    pub fn subscriptions(&self) -> EventKinds {
        governed(&self.links)
    }

    /// The decision on `event`, with its place in the order of decisions, if the same has been decided before and nobody has to
    /// be asked: the plugins have said that what they said holds for every event with this action.
    pub fn recall(&mut self, event: &mut Event) -> Option<Arc<Decision>> {
        let decision = self.memory.recall(&event.action)?;
        self.number(event);
        Some(decision)
    }

    /// Decides on `event`, and gives it its place in the order of decisions.
    ///
    /// The plugins that subscribed to its kind are asked in order, until one denies. Those in dry-run are asked in any
    /// case, for they too remember what they have seen, but what they say changes nothing.
    pub fn decide(&mut self, event: &mut Event, facts: &Arc<dyn Facts>) -> Arc<Decision> {
        let started = Instant::now();
        self.number(event);
        let (event, kind) = (&*event, event.kind());

        let mut failures = Vec::new();
        let mut candidates = Vec::new();
        let mut allowed: Option<(usize, Option<String>)> = None;
        let mut denied: Option<(usize, Denial)> = None;
        let mut by_action_alone = true;
        for (index, link) in self.links.iter_mut().enumerate().filter(|(_, link)| link.subscriptions.contains(kind)) {
            let counts = link.mode == Mode::Enforce;
            if counts && denied.is_some() {
                continue;
            }
            let said = link.plugin.decide(event, facts);
            by_action_alone &= said.as_ref().is_ok_and(|said| said.by_action_alone);
            match said.map(|said| said.verdict) {
                Ok(Verdict::Deny(denial)) if counts => denied = Some((index, denial)),
                Ok(Verdict::Deny(denial)) => candidates.push((link.plugin.name().to_owned(), denial)),
                Ok(Verdict::Allow { rule }) if counts && allowed.is_none() => allowed = Some((index, rule)),
                Ok(Verdict::Allow { .. } | Verdict::Abstain) => {}
                Err(failure) => {
                    if counts && link.on_failure == OnFailure::Deny {
                        denied = Some((index, failed(&failure)));
                    }
                    failures.push(failure);
                }
            }
        }

        let name = |index: usize| self.links[index].plugin.name().to_owned();
        let (denial, plugin, allowed_by) = match (denied, allowed) {
            (Some((index, denial)), _) => (Some(denial), name(index), None),
            (None, Some((index, rule))) => (None, name(index), rule),
            (None, None) if !self.governed.contains(kind) => (None, HOST.to_owned(), None),
            (None, None) => match self.default {
                DefaultVerdict::Deny => (Some(by_default()), HOST.to_owned(), None),
                DefaultVerdict::Allow => (None, HOST.to_owned(), Some("default".to_owned())),
            },
        };
        let decision = Decision { denial, plugin, allowed_by, failures, candidates, took: started.elapsed() };
        if by_action_alone {
            self.memory.keep(&event.action, Decision { took: Duration::ZERO, ..decision.clone() });
        }
        Arc::new(decision)
    }

    fn number(&mut self, event: &mut Event) {
        self.sequence += 1;
        event.sequence = self.sequence;
    }
}

/// What any of the links subscribed to. Whoever judges programs judges those without a path too, if only by the default:
/// else every program could be run by copying it into memory first.
fn governed<'a, P: 'a>(links: impl IntoIterator<Item = &'a Link<P>>) -> EventKinds {
    let kinds = links.into_iter().fold(EventKinds::NONE, |kinds, link| kinds.union(link.subscriptions));
    if kinds.contains(EventKind::Exec) { kinds.with(EventKind::ExecFileless) } else { kinds }
}

fn failed(failure: &Failure) -> Denial {
    Denial {
        rule: "plugin-failed".to_owned(),
        reason: format!("the plugin failed ({}): {}", failure.kind, failure.message),
        hint: None,
        errno: None,
    }
}

fn by_default() -> Denial {
    Denial { rule: "default".to_owned(), reason: "no plugin allowed it".to_owned(), hint: None, errno: None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::decide::KnownFacts;
    use crate::event::{Action, Exec, Socket, Subject};

    /// What a stub answers.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Says {
        Allow,
        Deny,
        Abstain,
        Fail,
    }

    /// Says always the same, and remembers which events it was asked about.
    struct Stub {
        name: String,
        kinds: EventKinds,
        says: Says,
        by_action_alone: bool,
        asked: Vec<u64>,
    }

    impl Judge for Stub {
        fn name(&self) -> &str {
            &self.name
        }

        fn subscriptions(&self) -> EventKinds {
            self.kinds
        }

        fn decide(&mut self, event: &Event, _: &Arc<dyn Facts>) -> Result<Said, Failure> {
            self.asked.push(event.sequence);
            let verdict = match self.says {
                Says::Allow => Verdict::Allow { rule: Some(self.name.clone()) },
                Says::Deny => Verdict::Deny(Denial { rule: self.name.clone(), ..by_default() }),
                Says::Abstain => Verdict::Abstain,
                Says::Fail => {
                    let (plugin, message) = (self.name.clone(), "unreachable".to_owned());
                    return Err(Failure { plugin, kind: "trap".into(), message });
                }
            };
            Ok(Said { verdict, by_action_alone: self.by_action_alone })
        }
    }

    fn chain(plugins: &[(Says, OnFailure, Mode)], default: DefaultVerdict) -> Chain<Stub> {
        let stub = |(index, &(says, on_failure, mode)): (usize, &(Says, OnFailure, Mode))| {
            let kinds = EventKinds::NONE.with(EventKind::Exec);
            (
                Stub { name: format!("p{index}"), kinds, says, by_action_alone: false, asked: Vec::new() },
                on_failure,
                mode,
            )
        };
        Chain::of(plugins.iter().enumerate().map(stub), default)
    }

    fn enforced(says: &[Says], default: DefaultVerdict) -> Chain<Stub> {
        let plugins: Vec<_> = says.iter().map(|says| (*says, OnFailure::Deny, Mode::Enforce)).collect();
        chain(&plugins, default)
    }

    fn event(action: Action) -> Event {
        Event { sequence: 0, time_ms: 0, subject: Subject::default(), action }
    }

    fn decide(chain: &mut Chain<Stub>) -> Arc<Decision> {
        let mut event = event(Action::Exec(Exec::default()));
        let facts = KnownFacts::default().about(&event);
        chain.decide(&mut event, &facts)
    }

    #[test]
    fn the_first_denial_counts_and_who_comes_later_is_not_asked() {
        use Says::{Abstain, Allow, Deny};
        let mut chain = enforced(&[Allow, Abstain, Deny, Deny], DefaultVerdict::Allow);
        let decision = decide(&mut chain);
        assert_eq!((decision.denial.as_ref().unwrap().rule.as_str(), decision.plugin.as_str()), ("p2", "p2"));
        assert_eq!(chain.links.iter().map(|link| link.plugin.asked.len()).collect::<Vec<_>>(), [1, 1, 1, 0]);
    }

    #[test]
    fn one_allow_suffices_and_the_first_is_named() {
        use Says::{Abstain, Allow};
        let decision = decide(&mut enforced(&[Abstain, Allow, Allow], DefaultVerdict::Deny));
        assert_eq!((&decision.denial, decision.plugin.as_str()), (&None, "p1"));
        assert_eq!(decision.allowed_by.as_deref(), Some("p1"));
    }

    #[test]
    fn where_all_abstain_the_default_decides() {
        for (default, denied) in [(DefaultVerdict::Deny, true), (DefaultVerdict::Allow, false)] {
            let decision = decide(&mut enforced(&[Says::Abstain, Says::Abstain], default));
            assert_eq!((decision.denial.is_some(), decision.plugin.as_str()), (denied, HOST));
        }
    }

    #[test]
    fn a_failure_means_what_the_policy_says_and_is_recorded_either_way() {
        for (on_failure, denied_by) in [(OnFailure::Deny, Some("p0")), (OnFailure::Abstain, None)] {
            let plugins = [(Says::Fail, on_failure, Mode::Enforce), (Says::Allow, OnFailure::Deny, Mode::Enforce)];
            let decision = decide(&mut chain(&plugins, DefaultVerdict::Deny));
            assert_eq!(decision.denial.as_ref().map(|_| decision.plugin.as_str()), denied_by);
            assert_eq!(decision.failures.len(), 1);
            assert_eq!(decision.failures[0].plugin, "p0");
        }
    }

    #[test]
    fn a_kind_that_only_dry_runs_look_at_is_not_denied_by_default() {
        let mut chain = chain(&[(Says::Deny, OnFailure::Deny, Mode::DryRun)], DefaultVerdict::Deny);
        assert!(chain.subscriptions().contains(EventKind::Exec));
        let decision = decide(&mut chain);
        assert_eq!((&decision.denial, decision.candidates.len()), (&None, 1));
    }

    #[test]
    fn nobody_is_asked_about_what_it_did_not_subscribe_to() {
        let mut chain = enforced(&[Says::Deny], DefaultVerdict::Deny);
        assert!(!chain.subscriptions().contains(EventKind::Socket));
        let mut socket = event(Action::Socket(Socket { family: 2, kind: 1, protocol: 0 }));
        let facts = KnownFacts::default().about(&socket);
        let decision = chain.decide(&mut socket, &facts);
        assert_eq!((&decision.denial, chain.links[0].plugin.asked.len()), (&None, 0));
    }

    #[test]
    fn a_program_without_a_path_is_governed_with_programs() {
        let mut chain = enforced(&[Says::Allow], DefaultVerdict::Deny);
        assert!(chain.subscriptions().contains(EventKind::ExecFileless));
        let mut fileless = event(Action::ExecFileless(Exec::default()));
        let facts = KnownFacts::default().about(&fileless);
        let decision = chain.decide(&mut fileless, &facts);
        assert_eq!((decision.denial.is_some(), chain.links[0].plugin.asked.len()), (true, 0));
    }

    #[test]
    fn what_all_who_were_asked_say_by_the_action_alone_is_not_asked_again() {
        use Says::{Allow, Deny};
        let mut chain = enforced(&[Allow, Deny, Allow], DefaultVerdict::Deny);
        let exec = |requested: &str| event(Action::Exec(Exec { requested: requested.to_owned(), ..Exec::default() }));
        let (mut one, mut other) = (exec("one"), exec("other"));
        let facts = KnownFacts::default().about(&one);
        chain.links[0].plugin.by_action_alone = true;
        chain.decide(&mut one, &facts);
        assert_eq!(chain.recall(&mut one), None, "the second has not said so");
        // The third is not asked, and need not say anything.
        chain.links[1].plugin.by_action_alone = true;
        let decided = chain.decide(&mut one, &facts);
        let recalled = chain.recall(&mut one).unwrap();
        assert_eq!((one.sequence, recalled.took), (3, Duration::ZERO));
        assert_eq!(*recalled, Decision { took: Duration::ZERO, ..(*decided).clone() });
        assert_eq!(chain.links[0].plugin.asked, [1, 2]);
        assert_eq!(chain.recall(&mut other), None);
    }

    #[test]
    fn a_failure_is_not_remembered() {
        let mut chain = enforced(&[Says::Fail], DefaultVerdict::Deny);
        chain.links[0].plugin.by_action_alone = true;
        let mut exec = event(Action::Exec(Exec::default()));
        let facts = KnownFacts::default().about(&exec);
        chain.decide(&mut exec, &facts);
        assert_eq!(chain.recall(&mut exec), None);
    }

    fn any_plugin() -> impl Strategy<Value = (Says, OnFailure, Mode)> {
        (
            prop_oneof![Just(Says::Allow), Just(Says::Deny), Just(Says::Abstain), Just(Says::Fail)],
            prop_oneof![Just(OnFailure::Deny), Just(OnFailure::Abstain)],
            prop_oneof![Just(Mode::Enforce), Just(Mode::DryRun)],
        )
    }

    proptest! {
        #[test]
        fn the_composition_is_that_of_its_description(
            plugins in proptest::collection::vec(any_plugin(), 0..8),
            default in prop_oneof![Just(DefaultVerdict::Deny), Just(DefaultVerdict::Allow)],
        ) {
            let mut chain = chain(&plugins, default);
            let decision = decide(&mut chain);
            let counting: Vec<_> = plugins.iter().filter(|(.., mode)| *mode == Mode::Enforce).collect();
            let denies = |(says, on_failure, _): &&&(Says, OnFailure, Mode)| {
                *says == Says::Deny || *says == Says::Fail && *on_failure == OnFailure::Deny
            };
            let allowed = counting.iter().any(|(says, ..)| *says == Says::Allow);
            let expected = counting.iter().any(|plugin| denies(&plugin))
                || !counting.is_empty() && !allowed && default == DefaultVerdict::Deny;
            prop_assert_eq!(decision.denial.is_some(), expected);
            // Who does not count changes nothing, and is asked in any case.
            for (link, (says, _, mode)) in chain.links.iter().zip(&plugins) {
                if *mode == Mode::DryRun {
                    prop_assert_eq!(link.plugin.asked.len(), 1);
                    let candidate = decision.candidates.iter().any(|(name, _)| *name == link.plugin.name);
                    prop_assert_eq!(candidate, *says == Says::Deny);
                }
            }
            let without: Vec<_> = counting.into_iter().copied().collect();
            let alone = decide(&mut super::tests::chain(&without, default));
            prop_assert_eq!(alone.denial.is_some(), decision.denial.is_some());
        }

        #[test]
        fn events_are_numbered_in_the_order_of_decisions(count in 1_u64..20) {
            let mut chain = enforced(&[Says::Abstain], DefaultVerdict::Allow);
            for _ in 0..count {
                decide(&mut chain);
            }
            prop_assert_eq!(&chain.links[0].plugin.asked, &(1..=count).collect::<Vec<_>>());
        }
    }
}
