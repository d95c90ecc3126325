//! Calls that were carried out without their callers hearing of it.
//!
//! Before Linux 5.19 a signal ends a caller's wait for our answer (`seccomp_do_user_notification`, kernel/seccomp.c): the
//! caller handles it, and the kernel starts the call again, or fails it with `EINTR` and the program makes it again. What had
//! been carried out by then must not be carried out twice. So the answer that nobody heard is kept, and given to the same
//! call of the same thread when it comes again: on the same socket, with the same address and payload. It is given once, and
//! forgotten when the thread makes another call on that socket. A handler's calls on other sockets do not matter.
//!
//! This is no cache of decisions: the call that comes again is decided on like any other, and only then the answer is looked
//! for. Where it is found, nothing is done at all.
//!
//! A thread is in one call at a time. If it makes another while we are still busy with the last (we wait for a connection,
//! say), nobody waits for that any more: it is ended first ([`Turn`]).
//!
//! What remains: for a moment after a signal has ended the wait the kernel still takes an answer, says that it was given, and
//! drops it (between the wait and `notify_lock`). It was seen in 2 or 3 of 2000 calls under 16,000 signals a second. To look
//! for signals before each answer would make it rarer, every call slower, and a storm of them endless.
//!
//! Where callers are kept only connections are: of those who die, or have no room for another descriptor, in the very moment
//! in which we accept for them. In the kernel such a connection would still be in the queue.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::enforce::traced::{self, Image};
use crate::enforce::waiting::Room;
use crate::intercept::caller::Caller;
use crate::intercept::path::View;
use crate::sys::notify::Answer;

/// How many calls and how many connections are kept. Of threads that never ask again the oldest are forgotten.
const MOST: usize = 256;
/// How long a connection is.
const KEPT: Duration = Duration::from_secs(10);

/// What is kept, and who is busy with what.
#[derive(Debug, Default)]
pub struct Unheard {
    inner: Mutex<Inner>,
    over: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    /// The notification that we are busy with, for each caller's thread.
    busy: HashMap<u32, u64>,
    calls: VecDeque<Kept>,
    connections: VecDeque<Connection>,
}

/// A connection that was accepted and has not reached anybody.
#[derive(Debug)]
struct Connection {
    /// Which socket it was accepted from.
    listening: u64,
    fd: OwnedFd,
    peer: Vec<u8>,
    since: Instant,
}

/// What came of a call, or of each message of a sendmmsg(2).
#[derive(Debug)]
struct Kept {
    of: Thread,
    socket: u64,
    answers: VecDeque<(u64, Answer)>,
}

/// What tells a thread, in the program that it runs, from another of the same number.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Thread {
    tid: u32,
    started: u64,
    image: Image,
}

impl Thread {
    /// `None` if it has ended.
    fn of(view: &View, caller: &Caller) -> Option<Self> {
        let image = traced::image(view, caller.tid)?;
        // Through the caller's own directory, which leads nowhere when another has its number.
        let started = traced::start_time(caller.directory())?;
        Some(Self { tid: caller.tid, started, image })
    }
}

/// The right to do something for a thread, until it is dropped: nothing else is being done for it.
#[derive(Debug)]
pub struct Turn<'a> {
    unheard: &'a Unheard,
    thread: u32,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.unheard.lock().busy.remove(&self.thread);
        self.unheard.over.notify_all();
    }
}

impl Unheard {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The turn of a thread's notification, when what we still do for an earlier one has ended. `None` if `goes_on` says no
    /// before: a signal has ended this one as well, of which there may be many while we are busy.
    pub fn turn(&self, room: &Room, thread: u32, id: u64, goes_on: impl Fn() -> bool) -> Option<Turn<'_>> {
        let mut inner = self.lock();
        while let Some(earlier) = inner.busy.get(&thread) {
            if !goes_on() {
                return None;
            }
            room.hurry(*earlier);
            let waited = self.over.wait_timeout(inner, Duration::from_millis(1));
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        inner.busy.insert(thread, id);
        Some(Turn { unheard: self, thread })
    }

    /// What came of this call if it was carried out already. `socket` says on what, `call` tells it from others there.
    pub fn recall(&self, view: &View, caller: &Caller, socket: u64, call: impl FnOnce() -> u64) -> Option<Answer> {
        let mut inner = self.lock();
        let is_there = |kept: &Kept| kept.of.tid == caller.tid && kept.socket == socket;
        let at = inner.calls.iter().position(is_there)?;
        let mut kept = inner.calls.remove(at)?;
        drop(inner);
        let (which, answer) = kept.answers.pop_front()?;
        if which != call() || Thread::of(view, caller) != Some(kept.of.clone()) {
            return None; // and what is left of it is forgotten
        }
        if !kept.answers.is_empty() {
            self.lock().calls.push_back(kept);
        }
        Some(answer)
    }

    /// Keeps what nobody heard. What fails is not kept: to do it again has the same effect, which is none.
    pub fn keep(&self, view: &View, caller: &Caller, socket: u64, answers: impl IntoIterator<Item = (u64, Answer)>) {
        let is_effect = |answer| matches!(answer, Answer::Value(_) | Answer::Errno(libc::EINPROGRESS));
        let answers: VecDeque<_> = answers.into_iter().take_while(|(_, answer)| is_effect(*answer)).collect();
        if answers.is_empty() {
            return;
        }
        let Some(of) = Thread::of(view, caller) else { return };
        let mut inner = self.lock();
        inner.calls.retain(|kept| kept.of.tid != of.tid || kept.socket != socket);
        push(&mut inner.calls, Kept { of, socket, answers });
    }

    /// Keeps a connection that was accepted for somebody who has not got it: the next who accepts there will.
    pub fn keep_connection(&self, listening: u64, fd: OwnedFd, peer: Vec<u8>) {
        push(&mut self.lock().connections, Connection { listening, fd, peer, since: Instant::now() });
    }

    /// The first connection that was kept for who accepts on the socket with this cookie.
    pub fn connection(&self, listening: impl FnOnce() -> Option<u64>) -> Option<(OwnedFd, Vec<u8>)> {
        if self.lock().connections.is_empty() {
            return None;
        }
        let listening = listening()?;
        let mut inner = self.lock();
        let found = inner.connections.iter().position(|kept| kept.listening == listening)?;
        inner.connections.remove(found).map(|kept| (kept.fd, kept.peer))
    }

    /// Closes connections that nobody has come for. To be called now and then: nobody tells us when a listening socket is
    /// gone, with which its queue goes.
    pub fn forget_the_old(&self) {
        let mut inner = self.lock();
        let old = inner.connections.iter().take_while(|kept| kept.since.elapsed() > KEPT).count();
        let gone: Vec<_> = inner.connections.drain(..old).collect();
        drop(inner);
        drop(gone);
    }
}

fn push<T>(queue: &mut VecDeque<T>, value: T) {
    if queue.len() == MOST {
        queue.pop_front();
    }
    queue.push_back(value);
}
