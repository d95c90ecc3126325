//! The threads that have called lately, with their descriptors, so that nothing has to be opened for the next call.
//!
//! What is kept of a thread may be used as long as the kernel, asked through its own descriptor, says that it lives: then its
//! number has not become another's. But an exec gives it another memory, while the old one may live on in a process that
//! shared it, and nothing that costs little tells the two apart. So memory is kept only where every exec of the workload
//! goes through us and is seen to end ([`Callers::exec`]); otherwise it is opened for each call.
//!
//! May depend on `sys` and `event`.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::resource::{Resource, getrlimit};

use crate::event::Subject;
use crate::intercept::caller::{Caller, Thread};
use crate::intercept::path::View;
use crate::sys::notify::{Listener, Notification};
use crate::sys::pidfd;

/// How many threads are kept at the most: each holds three descriptors.
const MOST: u64 = 256;
/// And how much of our limit of descriptors they may take.
const SHARE: u64 = 12;

/// How many processes are remembered of which it is not known when an exec is over.
const UNSEEN: usize = 1 << 16;

/// The threads that have called lately.
#[derive(Debug)]
pub struct Callers {
    /// The supervisor.
    own: u32,
    /// Whether an exec of any of them is seen.
    sees_execs: AtomicBool,
    most: usize,
    known: Mutex<Known>,
    /// Counts whenever a thread comes to be kept, or an exec has ended. Changed under the lock.
    changes: AtomicU64,
}

/// A moment between two changes, taken before a notification is received: see [`Callers::has_not_changed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment(u64);

#[derive(Debug, Default)]
struct Known {
    threads: HashMap<u32, Kept>,
    /// Counts calls, to tell which thread has not called for the longest.
    calls: u64,
    /// Counts execs that have ended.
    execs: u64,
    /// Processes with execs of which nobody knows whether they are over, and how many.
    under_way: HashMap<u32, usize>,
}

#[derive(Debug)]
struct Kept {
    thread: Arc<Thread>,
    pid: u32,
    called: u64,
}

impl Callers {
    /// None yet. `sees_execs`: [`Self::exec`] is called for every exec that anybody makes.
    pub fn new(sees_execs: bool) -> Self {
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
        let sees_execs = AtomicBool::new(sees_execs);
        Self {
            own: std::process::id(),
            sees_execs,
            most: (limit / SHARE / 3).min(MOST) as usize,
            known: Mutex::default(),
            changes: AtomicU64::new(0),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be taken before a notification is received.
    pub fn moment(&self) -> Moment {
        Moment(self.changes.load(SeqCst))
    }

    /// Who has made a call, if that thread is kept: without asking the kernel. What is then read of it may be believed where its
    /// socket could be had, and if [nothing has changed](Self::has_not_changed).
    pub fn presume(&self, listener: &Listener, call: &Notification, before: Moment) -> Option<Caller> {
        if !listener.keeps_callers() || !self.sees_execs.load(SeqCst) || self.moment() != before {
            return None;
        }
        let (thread, pid) = self.known().find(call.tid).0?;
        let caller = Caller::presumed(call.tid, pid, thread, before)?;
        caller.memory().is_ok().then_some(caller)
    }

    /// Whether no other program has come to have the number of the thread that was [presumed](Self::presume) to call.
    ///
    /// When a notification is received its caller is there. Its number may be another's in the next moment, if it is killed: by
    /// an exec of its process, which passes the number on, or else after it has been reaped. Of the first we hear before it
    /// begins, and when it has ended. Of the second the kept descriptors know: no socket is had through them any more (ESRCH).
    /// And what is kept now was so before the notification was received, and so is not of the next thread of that number.
    /// If the caller has merely been killed since, what was read is what it asked for.
    ///
    /// False of callers of whom the kernel was asked.
    pub fn has_not_changed(&self, caller: &Caller) -> bool {
        let known = self.known();
        let unchanged = caller.presumed == Some(self.moment()) && !known.under_way.contains_key(&caller.pid);
        unchanged && self.sees_execs.load(SeqCst)
    }

    /// Reads who has made a call.
    ///
    /// # Errors
    /// It is gone, or we may not look at it.
    pub fn read(&self, view: &View, listener: &Listener, call: &Notification) -> io::Result<Caller> {
        let (kept, execs) = self.find(call.tid);
        if let Some(caller) = kept {
            caller.memory()?;
            return Ok(caller);
        }
        let caller = Caller::read(view, call.tid)?;
        if matches!(i64::from(call.number), libc::SYS_execve | libc::SYS_execveat) {
            return Ok(caller); // it would not be kept for long
        }
        // Only of one that is there at the end are all descriptors its own.
        if listener.is_valid(call.id) {
            self.keep(&caller, execs);
        }
        Ok(caller)
    }

    /// The ancestors of a process, parent first, up to (not including) the supervisor or the end. At most 64.
    pub fn ancestors(&self, view: &View, mut parent: u32) -> Vec<Subject> {
        let mut found = Vec::new();
        while parent > 0 && parent != self.own && found.len() < 64 {
            let (kept, execs) = self.find(parent);
            let is_new = kept.is_none();
            let Ok(ancestor) = kept.map_or_else(|| Caller::look(view, parent), Ok) else { break };
            let Ok(subject) = ancestor.subject(view).cloned() else { break };
            // Both descriptors are of the same process if both still tell of one: the name came through the other.
            if is_new && !subject.executable.is_empty() && pidfd::info(ancestor.pidfd()).is_ok() {
                self.keep(&ancestor, execs);
            }
            parent = subject.parent;
            found.push(subject);
        }
        found
    }

    /// Lets go of the descriptors of a caller that is gone.
    pub fn forget(&self, caller: &Caller) {
        let gone = self.known().forget(caller.tid, caller.thread());
        drop(gone);
    }

    /// Likewise of everybody who is. To be called now and then, and when nobody calls any more.
    pub fn forget_the_dead(&self) {
        let kept: Vec<(u32, Arc<Thread>)> =
            self.known().threads.iter().map(|(tid, kept)| (*tid, Arc::clone(&kept.thread))).collect();
        for (tid, thread) in kept {
            if thread.is_dead() {
                let gone = self.known().forget(tid, &thread);
                drop(gone);
            }
        }
    }

    /// The thread of this number if it is kept, and lives; and how many execs have ended.
    fn find(&self, tid: u32) -> (Option<Caller>, u64) {
        let (kept, execs) = self.known().find(tid);
        let caller = kept.and_then(|(thread, _)| {
            let caller = Caller::look_again(tid, Arc::clone(&thread), self.sees_execs.load(SeqCst)).ok();
            if caller.is_none() {
                self.known().forget(tid, &thread);
            }
            caller
        });
        (caller, execs)
    }

    fn keep(&self, caller: &Caller, execs: u64) {
        let mut known = self.known();
        let kept = known.keep(caller, execs, self.most);
        if kept.is_some() {
            self.changes.fetch_add(1, SeqCst);
        }
        drop(known);
        drop(kept); // which takes system calls, and no lock
    }

    /// An exec may go through without [`Self::exec`], nobody knows whose.
    pub fn misses_an_exec(&self) {
        self.sees_execs.store(false, SeqCst);
    }

    /// A thread of this process is about to be let go on with an exec. To be called before it is.
    pub fn exec(&self, pid: u32) -> UnderWay<'_> {
        let mut known = self.known();
        if known.under_way.len() == UNSEEN {
            self.misses_an_exec(); // after which it does not matter what is in there
            known.under_way.clear();
        }
        *known.under_way.entry(pid).or_default() += 1;
        UnderWay { callers: self, pid, over: false }
    }
}

impl Known {
    /// The thread of this number, and its process; and how many execs have ended.
    fn find(&mut self, tid: u32) -> (Option<(Arc<Thread>, u32)>, u64) {
        self.calls += 1;
        let calls = self.calls;
        let kept = self.threads.get_mut(&tid).map(|kept| {
            kept.called = calls;
            (Arc::clone(&kept.thread), kept.pid)
        });
        (kept, self.execs)
    }

    fn forget(&mut self, tid: u32, thread: &Arc<Thread>) -> Option<Kept> {
        let is_it = self.threads.get(&tid).is_some_and(|kept| Arc::ptr_eq(&kept.thread, thread));
        if is_it { self.threads.remove(&tid) } else { None }
    }

    /// Keeps a thread that was opened when so many `execs` had ended, if it can. Returns those that have to go for it.
    fn keep(&mut self, caller: &Caller, execs: u64, most: usize) -> Option<[Option<Kept>; 2]> {
        if execs != self.execs || self.under_way.contains_key(&caller.pid) || most == 0 {
            return None;
        }
        let oldest = || self.threads.iter().min_by_key(|(_, kept)| kept.called).map(|(tid, _)| *tid);
        let oldest = if self.threads.len() < most { None } else { oldest() };
        let gone = oldest.and_then(|tid| self.threads.remove(&tid));
        let kept = Kept { thread: Arc::clone(caller.thread()), pid: caller.pid, called: self.calls };
        Some([self.threads.insert(caller.tid, kept), gone])
    }
}

/// An exec that may be carried out at any time. If it is dropped before it [is over](Self::is_over), nothing is kept of its
/// process ever after.
#[derive(Debug)]
pub struct UnderWay<'a> {
    callers: &'a Callers,
    pid: u32,
    over: bool,
}

impl UnderWay<'_> {
    /// It has failed; or it has gone through, so that all other threads of the process have ended, and the new program has
    /// not run yet.
    pub fn is_over(&mut self) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        let mut known = self.callers.known();
        known.execs += 1;
        self.callers.changes.fetch_add(1, SeqCst);
        match known.under_way.get_mut(&self.pid) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(known.under_way.remove(&self.pid)),
        }
        let gone: Vec<Kept> = known.threads.extract_if(|_, kept| kept.pid == self.pid).map(|(_, kept)| kept).collect();
        drop(known);
        drop(gone);
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if !self.over {
            let pid = self.pid;
            self.callers.known().threads.retain(|_, kept| kept.pid != pid);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread;

    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::Mode;

    use super::*;
    use crate::sys::seccomp;

    /// A thread of this process that does nothing but be there.
    struct Bystander(Option<Sender<()>>, u32);

    impl Bystander {
        fn start() -> Self {
            let ((stay, leave), (tell, told)): (_, (Sender<u32>, Receiver<u32>)) = (channel::<()>(), channel());
            thread::spawn(move || {
                tell.send(nix::unistd::gettid().as_raw() as u32).unwrap();
                let _ = leave.recv();
            });
            Self(Some(stay), told.recv().unwrap())
        }
    }

    fn view() -> View {
        let handle = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = |path: &str| open(path, handle, Mode::empty()).unwrap();
        let root = directory("/");
        View::new(directory("/"), directory("/proc"), std::os::fd::AsFd::as_fd(&root)).unwrap()
    }

    fn listener(keeps_callers: bool) -> Listener {
        Listener::new(open("/dev/null", OFlag::O_RDWR, Mode::empty()).unwrap(), keeps_callers)
    }

    fn call(tid: u32) -> Notification {
        Notification { id: 1, tid, number: libc::SYS_connect as i32, arch: seccomp::NATIVE_ARCH, args: [0; 6] }
    }

    fn keep(callers: &Callers, view: &View, tid: u32) {
        callers.keep(&Caller::read(view, tid).unwrap(), callers.find(tid).1);
    }

    #[test]
    fn a_kept_thread_is_presumed_to_call_until_something_changes() {
        let (view, listener, callers) = (view(), listener(true), Callers::new(true));
        let (one, other) = (Bystander::start(), Bystander::start());
        let own = std::process::id();
        let presume = |before| callers.presume(&listener, &call(one.1), before);
        assert!(presume(callers.moment()).is_none(), "it is not kept");
        let before = callers.moment();
        keep(&callers, &view, one.1);
        assert!(presume(before).is_none(), "kept after the call was received");
        let Some(caller) = presume(callers.moment()) else {
            // Before Linux 6.9 there are no descriptors of threads that don't lead.
            return;
        };
        assert!(caller.is_presumed());
        assert!(callers.has_not_changed(&caller));
        keep(&callers, &view, other.1);
        assert!(!callers.has_not_changed(&caller), "so may be this one");

        let caller = presume(callers.moment()).unwrap();
        let mut elsewhere = callers.exec(own + 1);
        assert!(callers.has_not_changed(&caller), "another process");
        elsewhere.is_over();
        assert!(!callers.has_not_changed(&caller), "an exec is over, and whose is not asked");

        let caller = presume(callers.moment()).unwrap();
        let mut exec = callers.exec(own);
        assert!(!callers.has_not_changed(&caller), "it may be another program at any time");
        exec.is_over();
        assert!(!callers.has_not_changed(&caller));
        assert!(presume(callers.moment()).is_none(), "nothing is kept of the old program");
    }

    #[test]
    fn of_whom_the_kernel_was_asked_it_has_to_be_asked_again() {
        let (view, callers, one) = (view(), Callers::new(true), Bystander::start());
        assert!(!callers.has_not_changed(&Caller::read(&view, one.1).unwrap()));
    }

    #[test]
    fn nobody_is_presumed_where_calls_end_by_signals_or_execs_are_not_seen() {
        let (view, callers, one) = (view(), Callers::new(true), Bystander::start());
        keep(&callers, &view, one.1);
        let presumed = callers.presume(&listener(true), &call(one.1), callers.moment());
        assert!(callers.presume(&listener(false), &call(one.1), callers.moment()).is_none());
        callers.misses_an_exec();
        assert!(callers.presume(&listener(true), &call(one.1), callers.moment()).is_none());
        assert!(presumed.is_none_or(|caller| !callers.has_not_changed(&caller)));
    }

    #[test]
    fn who_is_gone_is_nobody() {
        let (view, callers) = (view(), Callers::new(true));
        let mut one = Bystander::start();
        keep(&callers, &view, one.1);
        let presumed = callers.presume(&listener(true), &call(one.1), callers.moment());
        one.0 = None;
        let Some(caller) = presumed else { return };
        for _ in 0..2000 {
            if caller.thread().is_dead() {
                break;
            }
            thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(caller.descriptor(0).is_err(), "a descriptor of a thread that is gone");
        assert!(caller.subject(&view).is_err());
    }
}
