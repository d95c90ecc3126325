//! Waiting on behalf of a caller, who must not notice: it can be killed, interrupted by a signal, stopped.
//!
//! A call that waits, waits in the kernel: the very call, on a thread of ours. Nothing about the socket is changed for it
//! (it has one set of flags for all who share it), and the kernel itself keeps time limits and the order of those who wait.
//! What the kernel cannot know is that we wait for somebody else. So whoever waits is entered here, and one thread, the
//! watch, looks after them: if the caller is gone, or has a signal to handle, it ends our call.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::ptrace;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::wait::WaitPidFlag;
use nix::unistd::Pid;

use crate::enforce::exec::Holder;
use crate::intercept::caller::{Caller, Status};
use crate::sys::interruption::{self, uninterrupted};
use crate::sys::notify::{Answer, Listener};
use crate::sys::wait::{TRACEES, Whom, wait};

/// Why a wait has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// The caller is gone.
    Gone,
    /// The caller has a signal to handle.
    Signal,
}

impl Over {
    /// Whether the caller's wait has to end.
    pub fn look(listener: &Listener, id: u64, caller: &Caller) -> Option<Self> {
        if !listener.is_valid(id) {
            return Some(Self::Gone);
        }
        match Status::read(caller.directory()) {
            Ok(status) if status.deliverable_signals == 0 => None,
            Ok(_) => Some(Self::Signal),
            Err(_) => Some(Self::Gone),
        }
    }
}

/// When a caller is looked at first: most calls are over by then.
const FIRST: Duration = Duration::from_millis(1);
/// How often it is looked at, at the most seldom, as long as few wait.
const SELDOM: Duration = Duration::from_millis(50);
/// What is added to that for each caller who waits, so that a crowd does not cost more than some percent of a processor.
const CROWD: Duration = Duration::from_micros(300);
/// For how many rounds without a newcomer the watch stays awake: waking it costs more than a round.
const QUIET: u32 = 20;
/// The bell's number among the watched descriptors; notifications are numbered from a random start by the kernel, and one
/// that happens to be this one is merely looked at in its own time.
const BELL: u64 = u64::MAX;

/// How many descriptors are enough for all calls that do not wait: sixty threads are kept for them.
const SPARE: u64 = 2048;

/// Those who wait.
#[derive(Debug)]
pub struct Room {
    inner: Mutex<Inner>,
    epoll: Epoll,
    bell: EventFd,
    seats: AtomicUsize,
    /// From this descriptor on there are too few left to wait with one.
    descriptors: u64,
}

#[derive(Debug, Default)]
struct Inner {
    calls: HashMap<u64, Waiting>,
    /// Somebody has come since the last round.
    newcomer: bool,
    /// Until when the watch sleeps, if it does.
    asleep_until: Option<Instant>,
}

#[derive(Debug)]
struct Waiting {
    thread: u32,
    caller: Arc<Caller>,
    since: Instant,
    next: Instant,
    watched: bool,
}

/// One who waits, until it is dropped.
#[derive(Debug)]
pub struct Seat<'a> {
    room: &'a Room,
    id: u64,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.room.lock().calls.remove(&self.id);
    }
}

impl Room {
    /// An empty one, for so many, who leave a quarter of the process's descriptors, or `SPARE`, to others.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(seats: usize) -> io::Result<Self> {
        let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let bell = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&bell, EpollEvent::new(EpollFlags::EPOLLIN, BELL))?;
        Ok(Self {
            inner: Mutex::default(),
            epoll,
            bell,
            seats: AtomicUsize::new(seats),
            descriptors: limit - (limit / 4).min(SPARE),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on there is room for so many.
    pub fn limit(&self, seats: usize) {
        self.seats.store(seats, Relaxed);
    }

    /// From now on the calling thread is interrupted when the caller's wait has to end. `None` if all seats are taken: who
    /// waited all the same would keep a thread of ours, or descriptors, from calls that need not wait. `socket` is what it
    /// waits with; since a descriptor gets the lowest free number, that says how many there are.
    pub fn enter(&self, id: u64, caller: &Arc<Caller>, socket: BorrowedFd<'_>) -> Option<Seat<'_>> {
        let since = Instant::now();
        let next = since + FIRST;
        let (thread, caller) = (interruption::own_thread(), Arc::clone(caller));
        let mut inner = self.lock();
        let crowded = inner.calls.len() >= self.seats.load(Relaxed);
        if crowded || socket.as_raw_fd() as u64 >= self.descriptors {
            static SAID: Once = Once::new();
            let waiting = inner.calls.len();
            drop(inner);
            SAID.call_once(|| tracing::warn!("{waiting} calls wait already: more are refused (ENOBUFS)"));
            return None;
        }
        inner.calls.insert(id, Waiting { thread, caller, since, next, watched: false });
        inner.newcomer = true;
        let wake = inner.asleep_until.is_some_and(|until| until > next);
        if wake {
            inner.asleep_until = None;
        }
        drop(inner);
        if wake {
            let _ = self.bell.write(1);
        }
        Some(Seat { room: self, id })
    }

    /// Ends the wait for this notification at once, if somebody sits here for it. It has to be asked for again until it is
    /// over: a thread that is only about to wait takes no notice.
    pub fn hurry(&self, id: u64) {
        let inner = self.lock();
        if let Some(call) = inner.calls.get(&id) {
            interruption::interrupt(call.thread); // its seat is taken, so this is the thread
        }
    }

    /// Looks after those who wait, for ever. The kernel tells nobody but the caller that it has got a signal, so there is
    /// nothing for it but to look: the longer somebody has waited, the more seldom. It does tell that a caller has died.
    pub fn watch(&self, listener: &Listener) {
        let mut quiet = 0;
        loop {
            for (id, caller) in self.due() {
                let over = Over::look(listener, id, &caller).is_some();
                self.looked_at(id, over);
            }
            let now = Instant::now();
            let mut inner = self.lock();
            quiet = if std::mem::take(&mut inner.newcomer) { 0 } else { quiet + 1 };
            let next = inner.calls.values().map(|call| call.next).min();
            let until = if quiet < QUIET { Some(now + FIRST) } else { next.map(|next| next.max(now + FIRST)) };
            let timeout = until.and_then(|until| EpollTimeout::try_from(until - now).ok());
            inner.asleep_until = Some(until.unwrap_or(now + Duration::from_secs(1 << 30)));
            drop(inner);
            let mut events = [EpollEvent::empty(); 64];
            let count = self.epoll.wait(&mut events, timeout.unwrap_or(EpollTimeout::NONE)).unwrap_or(0);
            let mut inner = self.lock();
            inner.asleep_until = None;
            for event in &events[..count] {
                if event.data() == BELL {
                    let _ = self.bell.read();
                } else if let Some(call) = inner.calls.get_mut(&event.data()) {
                    call.next = now;
                }
            }
        }
    }

    fn due(&self) -> Vec<(u64, Arc<Caller>)> {
        let now = Instant::now();
        let inner = self.lock();
        let due = inner.calls.iter().filter(|(_, call)| call.next <= now);
        due.map(|(id, call)| (*id, Arc::clone(&call.caller))).collect()
    }

    fn looked_at(&self, id: u64, over: bool) {
        let mut inner = self.lock();
        let seldom = SELDOM.max(CROWD * inner.calls.len() as u32);
        let Some(call) = inner.calls.get_mut(&id) else { return };
        let now = Instant::now();
        let pause = if over { FIRST } else { ((now - call.since) / 8).clamp(FIRST, seldom) };
        call.next = now + pause;
        if over {
            // Its seat is still taken, so this is the thread, and it waits, or is about to: then the next round finds it.
            interruption::interrupt(call.thread);
        }
        if !call.watched {
            call.watched = true;
            let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT, id);
            // Without it a death is noticed later. Closing the descriptor ends it.
            let _ = self.epoll.add(call.caller.pidfd(), event);
        }
    }
}

/// Ends the caller's wait as a signal would: it handles the signal, and its call fails with `EINTR` or, if `restartable`
/// and the handler was installed with `SA_RESTART`, or if there is no handler to be run, starts again.
///
/// The kernel's own codes for that are `ERESTARTSYS` and `ERESTARTNOHAND`. It acts on them only when the thread has
/// something to do before it returns to user mode, else the program would see the number; so the thread is interrupted
/// with ptrace(2), which makes sure of that even if another thread takes the signal.
///
/// # Errors
/// The caller is gone.
pub fn interrupt(listener: &Listener, holder: &Holder, id: u64, caller: &Caller, restartable: bool) -> io::Result<()> {
    const ERESTARTSYS: i32 = 512; // include/linux/errno.h
    const ERESTARTNOHAND: i32 = 514;
    let code = if restartable { ERESTARTSYS } else { ERESTARTNOHAND };
    let pid = Pid::from_raw(caller.tid as i32);
    if ptrace::seize(pid, ptrace::Options::PTRACE_O_EXITKILL).is_err() {
        // Somebody in the workload traces it. Its own signals are its own only if it is alone.
        let errno = if caller.status().is_ok_and(|status| status.threads == 1) { code } else { libc::EINTR };
        return listener.send(id, Answer::Errno(errno));
    }
    let interrupted = ptrace::interrupt(pid);
    let sent = listener.send(id, Answer::Errno(if interrupted.is_ok() { code } else { libc::EINTR }));
    // Only looked at: if it has died and is our child as well, its status is for the thread that reaps.
    let flags = TRACEES | WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
    let _ = uninterrupted(|| wait(Whom::One(pid), flags));
    holder.release(pid);
    sent
}
