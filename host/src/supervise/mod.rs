//! The way of a notification, from the kernel and back: intercept, decide, enforce, record.
//!
//! Plain threads that block, each of which does everything for the notification that it has received: handing it to another
//! would cost more than the decision. Whose turn it is to receive is [`Relay`]'s business, which sees to it that a call that
//! takes long (a connection, a page that does not come) delays no other.

mod carry_out;
mod guard;
mod renewal;

use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open};
use nix::mount::MsFlags;
use nix::sys::stat::{Mode as FileMode, fstatat};
use nix::unistd::Pid;

use self::renewal::Renewal;
use crate::audit::{Audit, Outcome, Record, Refusal, Sinks};
use crate::control as orders;
use crate::decide::{Chain, Decision, Denial, Facts};
use crate::enforce::exec::{self as verified, Holder, Verified};
use crate::enforce::network as perform;
use crate::enforce::unheard::{Turn, Unheard};
use crate::enforce::waiting::{Over, Room};
use crate::event::{Action, Event, EventKind, EventKinds, Subject};
use crate::guarantees::{self, Findings};
use crate::intercept::caller::Caller;
use crate::intercept::callers::{Callers, Moment};
use crate::intercept::calls::{self, Call, Protected};
use crate::intercept::exec::Program;
use crate::intercept::facts::{Background, LiveFacts, Names};
use crate::intercept::path::{View, ran_out};
use crate::intercept::sockets::Sockets;
use crate::intercept::{self, Copy, Intercepted};
use crate::launch::{Awaited, Supervision};
use crate::log;
use crate::plugin::{Clock, Engine};
use crate::policy::{Guarantee, Mode, Policy};
use crate::relay::{self, Relay};
use crate::reload::Origin;
use crate::sys::credentials::Own;
use crate::sys::notify::{Answer, Listener, Notification};
use crate::sys::seccomp::Filter;
use crate::sys::{interruption, process, seccomp};
use crate::wrap;

/// Everything that a decision needs, before there are threads.
pub struct Supervisor {
    engine: Engine,
    chain: Option<Chain>,
    mode: Mode,
    policy: Policy,
    sinks: Option<Sinks>,
    origin: Option<Origin>,
    /// The mode that a flag or the environment asked for, and which of them.
    asked: Option<(Mode, &'static str)>,
    running: Option<(Arc<Office>, Clock)>,
}

impl Supervisor {
    /// A supervisor that decides with `chain`. `origin`: where the policy came from; `asked`: the mode that a flag or the
    /// environment asked for, and which of them.
    pub fn new(
        engine: Engine,
        chain: Chain,
        mode: Mode,
        policy: Policy,
        sinks: Sinks,
        origin: Origin,
        asked: Option<(Mode, &'static str)>,
    ) -> Self {
        Self {
            engine,
            chain: Some(chain),
            mode,
            policy,
            sinks: Some(sinks),
            origin: Some(origin),
            asked,
            running: None,
        }
    }
}

/// What the threads share.
struct Office {
    listener: Listener,
    view: Arc<View>,
    wanted: EventKinds,
    chain: Mutex<Chain>,
    background: Arc<Background>,
    dry_run: AtomicBool,
    audit: Audit,
    own: Own,
    findings: Findings,
    holder: Holder,
    renewal: Renewal,
    room: Room,
    sockets: Sockets,
    callers: Arc<Callers>,
    unheard: Unheard,
    guardian: Option<u32>,
    relay: Relay,
    over: AtomicBool,
}

/// An event, and what was decided on it.
struct Decided {
    /// Without time and subject if nobody wanted to know them: see [`Office::glance`].
    event: Event,
    decision: Arc<Decision>,
    /// `None`: nobody had to be asked.
    facts: Option<Arc<LiveFacts>>,
}

/// What stands for the socket of calls that are about none, for [`Office::once`]; a cookie is never 0 (net/core/sock_diag.c).
const NO_SOCKET: u64 = 0;
/// How many threads may wait at the same time; the others are for calls that don't.
const SEATS: usize = relay::THREADS - 64;
const STACK: usize = 1 << 20;

impl Supervision for Supervisor {
    fn filter(&self, protected: Protected) -> Result<Filter> {
        let wanted = self.chain.as_ref().context("made too late")?.subscriptions();
        let rules = calls::rules(wanted, Some(protected)).context("the table of system calls is wrong")?;
        Filter::new(rules).context("cannot make the seccomp filter")
    }

    fn begin(&mut self, listener: Awaited<'_>, command: Pid, guardian: Option<u32>) -> Result<()> {
        let chain = self.chain.take().context("begun twice")?;
        let view = Arc::new(own_view()?); // before there are threads
        let clock = self.engine.start_clock()?;
        let audit = Audit::start(&self.policy.audit, self.sinks.take().context("begun twice")?)
            .context("cannot start a thread")?;
        let listener = listener()?;
        let (wanted, mode) = (chain.subscriptions(), self.mode);
        let findings = guarantees::find(&view, &listener, command)?;
        findings.check(&self.policy.require, wanted, mode)?;
        if let Some(guardian) = guardian {
            guarantees::look_for_the_token(&view, guardian);
        }
        listener.synchronous_wake_up();
        let own = view.own().clone();
        let origin = self.origin.take().context("begun twice")?;
        let renewal = Renewal::new(self.engine.clone(), origin, self.asked, &self.policy);
        let room = Room::new(SEATS)?;
        let office = Arc::new_cyclic(|office: &Weak<Office>| Office {
            listener,
            view,
            wanted,
            chain: Mutex::new(chain),
            background: Arc::new(Background {
                started_ms: now_ms(),
                names: Names::read("/etc/hosts"),
                ..Background::default()
            }),
            dry_run: AtomicBool::new(mode == Mode::DryRun),
            audit,
            own: Own { identity: own, withheld: wrap::withheld() },
            holder: Holder::new(command, findings.filters),
            findings,
            renewal,
            room,
            sockets: Sockets::default(),
            callers: Arc::new(Callers::new(wanted.contains(EventKind::Exec))),
            unheard: Unheard::default(),
            guardian,
            relay: Relay::new({
                let office = Weak::clone(office);
                move || office.upgrade().map_or(Ok(()), one_more)
            }),
            over: AtomicBool::new(false),
        });
        interruption::prepare()?;
        log::detach().context("cannot start a thread")?;
        let (watched, relieved) = (Arc::clone(&office), Arc::clone(&office));
        let thread = |name: &str| std::thread::Builder::new().name(name.into()).stack_size(STACK);
        thread("callgate-watch")
            .spawn(move || watched.room.watch(&watched.listener))
            .and_then(|_| {
                let seldom = |office: &Office| {
                    office.callers.forget_the_dead();
                    office.unheard.forget_the_old();
                };
                thread("callgate-relief").spawn(move || relieved.relay.relieve(|| seldom(&relieved)))
            })
            .and_then(|_| office.relay.start())
            .context("cannot start a thread")?;
        renewal::control(&office);
        self.running = Some((office, clock));
        Ok(())
    }

    fn hang_up(&mut self, sender: Option<u32>) -> bool {
        self.running.as_ref().is_some_and(|(office, _)| office.hang_up(sender))
    }

    fn command_ended(&mut self) {
        if let Some((office, _)) = &self.running {
            office.audit.flush(Duration::from_secs(2));
            log::flush(Duration::from_secs(1));
        }
    }

    fn end(&mut self) {
        if let Some((office, _)) = &self.running {
            office.over.store(true, SeqCst);
            office.audit.finish(office.mode(), Duration::from_secs(4));
        }
        log::flush(Duration::from_secs(1));
    }
}

/// Root, mounts and `/proc` as they are now, out of the workload's reach: in a mount namespace of our own, if we may. If we
/// may not, then neither may the workload mount anything here.
fn own_view() -> Result<View> {
    let handle = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let outer = open("/", handle, FileMode::empty())?;
    let private = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).and_then(|()| {
        nix::mount::mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
    });
    if let Err(error) = private {
        tracing::debug!(%error, "no mount namespace of our own");
    }
    let root = open("/", handle, FileMode::empty())?;
    let proc = match open("/proc", handle, FileMode::empty()) {
        Ok(proc) if fstatat(&proc, "self", AtFlags::empty()).is_ok() => proc,
        _ => process::detached_proc().context("there is no /proc, and it cannot be mounted")?,
    };
    View::new(root, proc, outer.as_fd()).context("cannot use /proc")
}

/// Starts one more thread that receives notifications. Without it calls wait for those that there are; nothing is lost. But
/// these must not all wait themselves.
fn one_more(office: Arc<Office>) -> std::io::Result<()> {
    let started = receive(Arc::clone(&office));
    // The one that is not there has been counted already.
    office.room.limit(if started.is_ok() { SEATS } else { office.relay.threads().saturating_sub(3) });
    started
}

fn receive(office: Arc<Office>) -> std::io::Result<()> {
    std::thread::Builder::new().name("callgate-call".into()).stack_size(STACK).spawn(move || {
        process::own_directory();
        // See `process::path_to`: paths to sockets begin here.
        let at_home = nix::unistd::fchdir(office.view.proc());
        if at_home.and_then(|()| interruption::allow()).is_err() {
            std::process::abort();
        }
        work(&office);
    })?;
    Ok(())
}

fn work(office: &Office) {
    while office.relay.next() {
        let before = office.callers.moment();
        let notification = match office.listener.receive() {
            Ok(notification) => notification,
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR) => continue,
                // A caller that died before it could be handed over; or nobody is left.
                Some(libc::ENOENT) if !office.over.load(SeqCst) => {
                    std::thread::sleep(Duration::from_micros(200));
                    continue;
                }
                _ => return,
            },
        };
        office.relay.received();
        if is_exec(&notification) {
            office.relay.hand_over_to_a_crowd();
        }
        office.handle(&notification, before);
    }
}

fn is_exec(call: &Notification) -> bool {
    matches!(i64::from(call.number), libc::SYS_execve | libc::SYS_execveat)
}

/// Not if it only asks: the flag that says so is a number in a register. Before Linux 6.14 there is no such flag, and the call
/// fails.
fn runs_something(call: &Notification) -> bool {
    let only_asks = i64::from(call.number) == libc::SYS_execveat && call.args[4] as i32 & libc::AT_EXECVE_CHECK != 0;
    is_exec(call) && !only_asks
}

impl Office {
    fn handle(&self, notification: &Notification, before: Moment) {
        // A mistake of ours must neither leave the caller waiting for ever nor let its call through.
        let answer = catch_unwind(AssertUnwindSafe(|| self.answer(notification, before))).unwrap_or_else(|_| {
            tracing::error!("system call {} was refused because of the panic above", notification.number);
            Some(Answer::Errno(libc::EPERM))
        });
        if let Some(answer) = answer {
            self.send(notification, answer);
        }
    }

    fn send(&self, notification: &Notification, answer: Answer) {
        // The caller may run before we go on, and then it is no more for what we did that others wait.
        if is_exec(notification) {
            self.look_for_a_crowd();
        }
        // If the caller is gone there is nobody to tell.
        let _ = self.listener.send(notification.id, answer);
    }

    fn look_for_a_crowd(&self) {
        self.relay.look_for_a_crowd(|| self.listener.has_more());
    }

    /// What to answer; `None` if it has been answered, or there is nobody to answer.
    fn answer(&self, notification: &Notification, before: Moment) -> Option<Answer> {
        let is_groups = calls::call(notification.number) == Some(Call::Setgroups);
        if is_groups && notification.arch == seccomp::NATIVE_ARCH && self.holder.expects(notification.tid) {
            return Some(Answer::Continue);
        }
        let Ok(_turn) = self.turn(notification) else { return None };
        if let Some((caller, intercepted)) = self.glance(notification, before) {
            return self.answer_to_intercepted(&caller, intercepted, notification);
        }
        // What the kernel is left to carry out unseen could be an exec, and through another entry any number may mean that.
        let may_be_exec = runs_something(notification) || notification.arch != seccomp::NATIVE_ARCH;
        let caller = match self.callers.read(&self.view, &self.listener, notification) {
            Ok(caller) => Arc::new(caller),
            Err(_) if !self.listener.is_valid(notification.id) => return None,
            Err(error) => {
                let answer = self.unreadable(notification, &error);
                if answer == Answer::Continue && may_be_exec {
                    self.callers.misses_an_exec();
                }
                return Some(answer);
            }
        };
        let answer = self.answer_to(&caller, notification);
        if answer == Some(Answer::Continue) && may_be_exec {
            drop(self.callers.exec(caller.pid));
        }
        answer
    }

    /// Refuses a call of whom nothing can be known.
    fn unreadable(&self, notification: &Notification, error: &std::io::Error) -> Answer {
        let subject = nobody(notification.tid);
        let ran_out = error.raw_os_error().is_some_and(|errno| ran_out(Errno::from_raw(errno)));
        let may_need = if ran_out { "" } else { "; the supervisor may need CAP_SYS_PTRACE" };
        let why = format!("the caller cannot be looked at ({error}){may_need}");
        self.refuse(subject, notification, "caller-unreadable", &why, Errno::EPERM)
    }

    /// What most calls on sockets mean, where the kernel need not be asked who makes them. `None`: it must be asked.
    fn glance(&self, notification: &Notification, before: Moment) -> Option<(Arc<Caller>, Intercepted)> {
        let call = calls::call(notification.number).filter(|_| notification.arch == seccomp::NATIVE_ARCH)?;
        if !matches!(call, Call::Connect | Call::Bind | Call::Sendto | Call::Sendmsg) {
            return None;
        }
        let caller = Arc::new(self.callers.presume(&self.listener, notification, before)?);
        // What fails is looked at again, and then it is known whose mistake it is.
        let intercepted = self.intercept(&caller, call, notification).ok()?;
        self.callers.has_not_changed(&caller).then_some((caller, intercepted))
    }

    fn intercept(&self, caller: &Caller, call: Call, notification: &Notification) -> Result<Intercepted, Errno> {
        intercept::intercept(&self.view, &self.own, &self.sockets, caller, self.wanted, call, notification)
    }

    fn answer_to(&self, caller: &Arc<Caller>, notification: &Notification) -> Option<Answer> {
        if notification.arch != seccomp::NATIVE_ARCH {
            let why = "a system call through another architecture's entry";
            return Some(self.refuse(self.subject(caller), notification, "foreign-abi", why, Errno::ENOSYS));
        }
        let Some(call) = calls::call(notification.number) else {
            let why = "a system call that the filter was not made for";
            return Some(self.refuse(self.subject(caller), notification, "unknown-call", why, Errno::ENOSYS));
        };
        if matches!(call, Call::Task(_) | Call::TaskOrMany(_) | Call::PidfdSendSignal)
            || matches!(call, Call::Bypass("fcntl"))
        {
            return self.guard(caller, call, notification);
        }
        let intercepted = self.intercept(caller, call, notification);
        if matches!(intercepted, Ok(Intercepted::Event(..))) {
            let _ = caller.subject(&self.view); // who it is belongs to what is read
        }
        // Otherwise what was read may be somebody else's; also where the caller's descriptors are kept, and so cannot have
        // become another thread's: an exec of a sibling ends the call, and gives another program the same number.
        if !self.listener.is_valid(notification.id) {
            return None;
        }
        match intercepted {
            Err(errno) if self.mode() == Mode::DryRun => {
                tracing::debug!(%errno, "left to the kernel");
                Some(Answer::Continue)
            }
            Err(errno) if ran_out(errno) => {
                let why = format!("what the call means could not be found out: {errno}");
                let subject = self.subject(caller);
                Some(self.refuse(subject, notification, "supervisor-exhausted", &why, errno))
            }
            Err(errno) => Some(Answer::Errno(errno as i32)),
            Ok(intercepted) => self.answer_to_intercepted(caller, intercepted, notification),
        }
    }

    fn answer_to_intercepted(
        &self,
        caller: &Arc<Caller>,
        intercepted: Intercepted,
        notification: &Notification,
    ) -> Option<Answer> {
        match intercepted {
            Intercepted::Refused(name, errno) => {
                let why = match calls::call(notification.number) {
                    Some(Call::Bypass("prctl")) => {
                        "the process would pass itself off as one that runs another program".to_owned()
                    }
                    Some(Call::Bypass("request_key")) => {
                        "the kernel would start a program for the key, outside of the workload".to_owned()
                    }
                    _ => format!("{name} would get past the network rules"),
                };
                Some(self.refuse(self.subject(caller), notification, name, &why, errno))
            }
            Intercepted::Event(Action::Connect(to), _) if orders::is_name(&to.address) => {
                let why = "who connects there would give orders to a supervisor, and pass for us";
                Some(self.refuse_always(self.subject(caller), notification, "supervisor-protected", why))
            }
            Intercepted::Event(action, copy) => self.decide_and_enforce(caller, action, copy, notification),
            Intercepted::Ungoverned(_) if self.mode() == Mode::DryRun => Some(Answer::Continue),
            Intercepted::Ungoverned(copy) => self.carry_out(caller, copy, notification.id, None),
            Intercepted::Messages(held, vector, count, flags) => {
                self.send_messages(caller, &held, vector, count, flags, notification)
            }
            Intercepted::PeerCredentials(held, value, length) => {
                Some(perform::peer_credentials(&self.desk(caller, notification.id), &held, value, length))
            }
            Intercepted::PeerDescriptor(held) => Some(perform::peer_descriptor(&held)),
            Intercepted::Accepting(held, flags) => self.accept(caller, &held, flags, notification),
        }
    }

    /// Where a signal makes callers come again while their call is still being carried out: their turn, one at a time.
    fn turn(&self, notification: &Notification) -> Result<Option<Turn<'_>>, Over> {
        if self.listener.keeps_callers() || notification.tid == 0 {
            return Ok(None);
        }
        let goes_on = || self.listener.is_valid(notification.id);
        let turn = self.unheard.turn(&self.room, notification.tid, notification.id, goes_on).ok_or(Over::Gone)?;
        // What is verified waits for its caller's end of the call, with which it may be in the next already.
        let is_verified =
            matches!(calls::call(notification.number), Some(Call::Execve | Call::Execveat | Call::Setgroups));
        Ok((!is_verified).then_some(turn))
    }

    /// Refuses by the supervisor's own rule, or says that it would.
    fn refuse(&self, subject: Subject, call: &Notification, rule: &str, why: &str, errno: Errno) -> Answer {
        let dry = self.mode() == Mode::DryRun;
        self.record_refusal(subject, call, rule, why, errno, if dry { Outcome::WouldDeny } else { Outcome::Denied });
        if dry { Answer::Continue } else { Answer::Errno(errno as i32) }
    }

    fn record_refusal(
        &self,
        subject: Subject,
        call: &Notification,
        rule: &str,
        reason: &str,
        errno: Errno,
        outcome: fn(i32) -> Outcome,
    ) {
        let native = call.arch == seccomp::NATIVE_ARCH;
        self.audit.refusal(Refusal {
            mode: self.mode(),
            time_ms: now_ms(),
            ancestors: self.callers.ancestors(&self.view, subject.parent),
            subject,
            call: native.then(|| calls::call(call.number)).flatten().map(|call| call.name()),
            number: call.number,
            architecture: call.arch,
            rule: rule.to_owned(),
            reason: reason.to_owned(),
            outcome: outcome(errno as i32),
        });
    }

    /// Whether a decision is written down whatever comes of it.
    fn records(&self, decision: &Decision) -> bool {
        let interesting = decision.denial.is_some() || !decision.failures.is_empty() || !decision.candidates.is_empty();
        interesting || self.audit.wants_all()
    }

    fn record(&self, event: &Event, decision: &Arc<Decision>, outcome: Outcome) {
        if outcome != Outcome::Killed && !self.records(decision) {
            return;
        }
        let ancestors = self.callers.ancestors(&self.view, event.subject.parent);
        let (event, decision) = (event.clone(), Arc::clone(decision));
        self.audit.record(Record { mode: self.mode(), event, ancestors, decision, outcome });
    }

    /// Who calls, for a record: as far as that is known, if it is gone.
    fn subject(&self, caller: &Caller) -> Subject {
        let gone = |_| Subject { pid: caller.pid, ..nobody(caller.tid) };
        caller.subject(&self.view).cloned().unwrap_or_else(gone)
    }

    /// Has the plugins decide on what the caller wants, unless they have done so before.
    ///
    /// # Errors
    /// What to answer, if nothing can be known of the caller.
    fn decide(
        &self,
        caller: &Arc<Caller>,
        action: Action,
        program: Option<Arc<Program>>,
        call: &Notification,
    ) -> Result<Decided, Answer> {
        let chain = || self.chain.lock().unwrap_or_else(PoisonError::into_inner);
        let mut event = Event { sequence: 0, time_ms: 0, subject: Subject::default(), action };
        let recalled = chain().recall(&mut event);
        // Who it is, nobody need know where nobody is asked and nothing is recorded; and the kernel was not asked either.
        if !caller.is_presumed() || recalled.as_ref().is_none_or(|decision| self.records(decision)) {
            event.time_ms = now_ms();
            let fresh = !caller.has_subject();
            let subject = caller.subject(&self.view);
            // An exec of a sibling may have given its number to another program meanwhile, whose name this would be.
            let unchanged = || subject.is_ok() && self.callers.has_not_changed(caller);
            if fresh && !unchanged() && !self.listener.is_valid(call.id) {
                return Err(Answer::Errno(libc::EPERM)); // to nobody
            }
            event.subject = subject.cloned().map_err(|error| self.unreadable(call, &error))?;
        }
        if let Some(decision) = recalled {
            return Ok(Decided { event, decision, facts: None });
        }
        let Event { subject, action, .. } = &event;
        let facts =
            LiveFacts::new(&self.view, &self.callers, &self.background, caller, subject.parent, action, program);
        if facts.will_look_ahead() {
            self.relay.hand_over();
            facts.look_ahead();
        }
        let facts = Arc::new(facts);
        let shared: Arc<dyn Facts> = Arc::<LiveFacts>::clone(&facts);
        let decision = chain().decide(&mut event, &shared);
        facts.decided();
        Ok(Decided { event, decision, facts: Some(facts) })
    }

    fn decide_and_enforce(
        &self,
        caller: &Arc<Caller>,
        action: Action,
        copy: Copy,
        call: &Notification,
    ) -> Option<Answer> {
        let (copy, program) = match copy {
            Copy::Exec(program) => (None, Some(Arc::<Program>::from(program))),
            copy => (Some(copy), None),
        };
        let Decided { event, decision, facts } = match self.decide(caller, action, program.clone(), call) {
            Ok(decided) => decided,
            Err(answer) => return Some(answer),
        };
        // What the kernel would refuse anyway fails as it does without us, whoever else is against it.
        let inexecutable = program.as_ref().is_some_and(|program| program.inexecutable);
        let errno = decision.errno(event.kind()).map(|errno| if inexecutable { libc::EACCES } else { errno });
        if let Some(answer) = self.denied(&event, &decision, errno) {
            self.send(call, answer); // before what was opened is closed
            return None;
        }
        if self.mode() == Mode::DryRun {
            return Some(Answer::Continue);
        }
        match (program, copy) {
            (Some(program), _) => self.run(caller, &event, &decision, &program, facts.as_deref(), call.id),
            (None, Some(copy)) => self.carry_out(caller, copy, call.id, Some((&event, &decision))),
            (None, None) => None,
        }
    }

    /// Records the decision; what to answer if it is a denial that counts.
    fn denied(&self, event: &Event, decision: &Arc<Decision>, errno: Option<i32>) -> Option<Answer> {
        match errno {
            Some(errno) if self.mode() == Mode::Enforce => {
                self.record(event, decision, Outcome::Denied(errno));
                Some(Answer::Errno(errno))
            }
            Some(errno) => {
                self.record(event, decision, Outcome::WouldDeny(errno));
                None
            }
            None => {
                self.record(event, decision, Outcome::Allowed);
                None
            }
        }
    }

    fn run(
        &self,
        caller: &Caller,
        event: &Event,
        decision: &Arc<Decision>,
        program: &Program,
        facts: Option<&LiveFacts>,
        id: u64,
    ) -> Option<Answer> {
        if program.inexecutable {
            return Some(Answer::Errno(libc::EACCES));
        }
        // What only asks runs nothing: the flag that says so is in a register, which nobody changes while the caller waits.
        if program.only_asked || !self.findings.has(Guarantee::RaceFreeExec) {
            return Some(Answer::Continue);
        }
        let digests = facts.map(LiveFacts::digests).unwrap_or_default();
        let mut under_way = self.callers.exec(caller.pid);
        let result =
            verified::exec(&self.listener, &self.view, &self.holder, id, caller, program, &digests, &mut under_way);
        if result.is_ok() {
            under_way.is_over();
        }
        self.look_for_a_crowd();
        self.verified(event, decision, result)
    }

    fn verified(&self, event: &Event, decision: &Arc<Decision>, result: std::io::Result<Verified>) -> Option<Answer> {
        let mut hint = None;
        let (rule, why, outcome) = match result {
            Ok(Verified::Done | Verified::Gone) => return None,
            Ok(Verified::Killed(why)) => ("not-what-was-decided", why, Outcome::Killed),
            Ok(Verified::Traced) => {
                let why = "the caller is traced by another process, so that what it runs cannot be verified".to_owned();
                hint = Some("attach the tracer to the program when it runs already".to_owned());
                ("traced", why, Outcome::Denied(libc::EPERM))
            }
            Ok(Verified::Unreadable) => {
                let why = "the supervisor may not read the program, so it cannot tell what that runs".to_owned();
                ("unreadable", why, Outcome::Denied(libc::EACCES))
            }
            Err(error) => ("unverifiable", format!("the caller cannot be held: {error}"), Outcome::Denied(libc::EPERM)),
        };
        let denial = Denial { rule: rule.to_owned(), reason: why, hint, errno: None };
        let decision = Decision { denial: Some(denial), plugin: "callgate".to_owned(), ..Decision::clone(decision) };
        self.record(event, &Arc::new(decision), outcome);
        match outcome {
            Outcome::Denied(errno) => Some(Answer::Errno(errno)),
            _ => None,
        }
    }

    fn mode(&self) -> Mode {
        if self.dry_run.load(SeqCst) { Mode::DryRun } else { Mode::Enforce }
    }
}

/// A thread of which nothing else is known. Its user is that of audit(8) for none.
fn nobody(tid: u32) -> Subject {
    Subject { pid: tid, tid, uid: u32::MAX, gid: u32::MAX, ..Subject::default() }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
