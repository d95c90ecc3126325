//! The plugins of a policy, and how their verdicts make one.

use std::sync::Arc;
use std::time::Instant;

use super::{Decision, Denial, Facts, Failure, Verdict};
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
    fn decide(&mut self, event: &Event, facts: &Arc<dyn Facts>) -> Result<Verdict, Failure>;
}

impl Judge for Plugin {
    fn name(&self) -> &str {
        self.name()
    }

    fn subscriptions(&self) -> EventKinds {
        self.subscriptions()
    }

    fn decide(&mut self, event: &Event, facts: &Arc<dyn Facts>) -> Result<Verdict, Failure> {
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
        Self { links, default, governed, sequence: 0 }
    }

    /// The kinds of event that must be brought before the chain.
    pub fn subscriptions(&self) -> EventKinds {
        governed(&self.links)
    }

    /// Decides on `event`, and gives it its place in the order of decisions.
    ///
    /// The plugins that subscribed to its kind are asked in order, until one denies. Those in dry-run are asked in any
    /// case, for they too remember what they have seen, but what they say changes nothing.
    pub fn decide(&mut self, event: &mut Event, facts: &Arc<dyn Facts>) -> Decision {
        let started = Instant::now();
        self.sequence += 1;
        event.sequence = self.sequence;
        let (event, kind) = (&*event, event.kind());

        let mut failures = Vec::new();
        let mut candidates = Vec::new();
        let mut allowed: Option<(usize, Option<String>)> = None;
        let mut denied: Option<(usize, Denial)> = None;
        for (index, link) in self.links.iter_mut().enumerate().filter(|(_, link)| link.subscriptions.contains(kind)) {
            let counts = link.mode == Mode::Enforce;
            if counts && denied.is_some() {
                continue;
            }
            match link.plugin.decide(event, facts) {
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
        Decision { denial, plugin, allowed_by, failures, candidates, took: started.elapsed() }
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
