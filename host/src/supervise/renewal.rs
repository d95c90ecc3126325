//! Another policy for a workload that runs: who may ask for it, and how it is put into force.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;

use super::{Office, STACK, now_ms};
use crate::audit::Reloaded;
use crate::control::{Control, Request};
use crate::event::EventKind;
use crate::intercept::caller::Status;
use crate::plugin::Engine;
use crate::policy::{AuditSettings, Mode, Policy, Sighup};
use crate::reload::{Candidate, Origin};
use crate::wrap;

/// What another policy is made from, and what of the first one it cannot change.
pub(super) struct Renewal {
    engine: Engine,
    origin: Origin,
    asked: Option<(Mode, &'static str)>,
    audit: AuditSettings,
    /// Held while another policy is put into force: one at a time.
    under_way: Mutex<()>,
    /// Whether the policy in force leaves SIGHUP to the command. The main thread asks, which waits for nobody.
    passes_hang_ups_on: AtomicBool,
    /// How often the policy is still to be read again.
    hang_ups: AtomicU32,
}

impl Renewal {
    /// For a workload that begins under `policy`.
    pub(super) fn new(engine: Engine, origin: Origin, asked: Option<(Mode, &'static str)>, policy: &Policy) -> Self {
        Self {
            engine,
            origin,
            asked,
            audit: policy.audit.clone(),
            under_way: Mutex::new(()),
            passes_hang_ups_on: AtomicBool::new(policy.sighup == Sighup::PassOn),
            hang_ups: AtomicU32::new(0),
        }
    }
}

/// Takes orders from outside of the workload, where it can be told who gives them.
pub(super) fn control(office: &Arc<Office>) {
    let Some(filters) = office.findings.filters else {
        tracing::info!("the supervisor takes no orders: this kernel (before Linux 5.9) does not count seccomp filters");
        return;
    };
    let ours = Arc::clone(office);
    let serve = move |control: Control| control.serve(&ours.view, filters, |request| ours.renew(request));
    let started = Control::open().and_then(|control| {
        let builder = std::thread::Builder::new().name("callgate-control".into()).stack_size(STACK);
        Ok(builder.spawn(move || serve(control))?)
    });
    if let Err(error) = started {
        tracing::warn!("the supervisor takes no orders: {error:#}");
    }
}

impl Office {
    /// Somebody sent us SIGHUP; see [`Supervision::hang_up`](crate::launch::Supervision::hang_up).
    pub(super) fn hang_up(self: &Arc<Self>, sender: Option<u32>) -> bool {
        if self.renewal.passes_hang_ups_on.load(SeqCst) {
            return false;
        }
        // The file may have a policy in whose place another was put.
        match sender.map(|sender| (sender, self.is_outside(sender))) {
            None | Some((_, Some(true))) => {}
            Some((_, Some(false))) => return false,
            Some((sender, None)) => {
                tracing::warn!(
                    "the policy is not read again: process {sender}, which has sent SIGHUP, is gone and may have been the \
                     workload's; from inside use `callgate reload`"
                );
                return true;
            }
        }
        // Of many that come meanwhile the last one counts, and none of them takes a thread.
        if self.renewal.hang_ups.fetch_add(1, SeqCst) > 0 {
            return true;
        }
        let ours = Arc::clone(self);
        // Plugins are compiled, which may take a while, and the main thread has to look after the command.
        let started = std::thread::Builder::new().name("callgate-reload".into()).spawn(move || {
            loop {
                let so_far = ours.renewal.hang_ups.load(SeqCst);
                if ours.renew(Request::Reload).is_err() {
                    tracing::warn!(
                        "nor was the command sent SIGHUP; with \"sighup\": \"pass-on\" in the policy it is its own"
                    );
                }
                if ours.renewal.hang_ups.fetch_sub(so_far, SeqCst) == so_far {
                    break;
                }
            }
        });
        if let Err(error) = started {
            self.renewal.hang_ups.store(0, SeqCst);
            tracing::error!("the policy is not read again, there is no thread for it: {error}");
        }
        true
    }

    /// Puts another policy into force, if all of it is well. Says what came of it.
    fn renew(&self, request: Request) -> Result<String> {
        let by = if matches!(request, Request::Reload) { "read again" } else { "handed over" };
        let _alone = self.renewal.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let renewed = self.candidate(request).and_then(|candidate| self.put_into_force(candidate, by));
        match &renewed {
            Ok(said) => tracing::info!("{said}"),
            Err(error) => tracing::error!("the policy stays as it was: {error:#}"),
        }
        renewed
    }

    fn candidate(&self, request: Request) -> Result<Candidate> {
        let Renewal { engine, origin, asked, .. } = &self.renewal;
        let (policy, source) = match request {
            Request::Reload => origin.read_again(&wrap::workload()?)?,
            Request::Take(handed) => handed.read()?,
        };
        Candidate::load(engine, policy, source, *asked)
    }

    fn put_into_force(&self, candidate: Candidate, by: &'static str) -> Result<String> {
        let Candidate { policy, mut chain, mode, source } = candidate;
        let wanted = chain.subscriptions();
        let missing: Vec<&str> =
            wanted.iter().filter(|kind| !self.wanted.contains(*kind)).map(EventKind::name).collect();
        if !missing.is_empty() {
            let message = format!(
                "it governs {}, which this workload's filter was not made for: a filter cannot be changed",
                missing.join(", ")
            );
            return Err(source.mistake("", message, Some("start the workload anew".to_owned())).into());
        }
        if policy.audit != self.renewal.audit {
            let message =
                "the audit log cannot be changed while the workload runs: it could have changed where paths lead";
            return Err(source
                .mistake("/audit", message.to_owned(), Some("start the workload anew".to_owned()))
                .into());
        }
        self.findings.check(&policy.require, wanted, mode)?;
        let mut current = self.chain.lock().unwrap_or_else(PoisonError::into_inner);
        chain.take_over(&mut current);
        let old = std::mem::replace(&mut *current, chain);
        self.dry_run.store(mode == Mode::DryRun, SeqCst);
        drop(current);
        drop(old);
        self.renewal.passes_hang_ups_on.store(policy.sighup == Sighup::PassOn, SeqCst);
        let plugins: Vec<String> = policy.plugins.into_iter().map(|plugin| plugin.name).collect();
        let said = format!("{} is in force ({by}; {mode}; plugins: {})", source.path.display(), plugins.join(", "));
        self.audit.reloaded(Reloaded { mode, time_ms: now_ms(), policy: source, by, plugins });
        Ok(said)
    }

    /// Whether a process is none of the workload's, if that can be told.
    fn is_outside(&self, pid: u32) -> Option<bool> {
        let theirs = Status::of(&self.view, pid).ok()?.filters?;
        Some(theirs < self.findings.filters?)
    }
}
