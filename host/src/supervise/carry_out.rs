//! What was allowed is carried out: the caller's own call, from the private copy, and its end told to the caller.

use std::os::fd::AsFd;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::{Decided, Office, now_ms};
use crate::decide::Decision;
use crate::enforce::exec::{self as verified, Verified};
use crate::enforce::network::{self as perform, Desk, Performed};
use crate::enforce::waiting;
use crate::event::Event;
use crate::intercept::caller::Caller;
use crate::intercept::network::{self, Held};
use crate::intercept::{self, Copy, Intercepted};
use crate::policy::Mode;
use crate::sys::notify::{Answer, Notification};
use crate::sys::{pidfd, socket};

impl Office {
    /// Carries out a call, if that has not been done already without the caller hearing of it; see `enforce::unheard`. `socket`
    /// says on what, `call` tells it from others there.
    pub(super) fn once(
        &self,
        caller: &Caller,
        id: u64,
        socket: Option<u64>,
        call: impl Fn() -> u64,
        work: impl FnOnce() -> Option<Answer>,
    ) -> Option<Answer> {
        let Some(socket) = socket.filter(|_| !self.listener.keeps_callers()) else { return work() };
        let answer = self.unheard.recall(&self.view, caller, socket, &call).or_else(work)?;
        if self.listener.send(id, answer).is_err() {
            self.unheard.keep(&self.view, caller, socket, [(call(), answer)]);
        }
        None
    }

    pub(super) fn desk<'a>(&'a self, caller: &'a Arc<Caller>, id: u64) -> Desk<'a> {
        Desk {
            listener: &self.listener,
            view: &self.view,
            own: &self.own,
            room: &self.room,
            relay: &self.relay,
            sockets: &self.sockets,
            id,
            caller,
        }
    }

    pub(super) fn carry_out(
        &self,
        caller: &Arc<Caller>,
        copy: Copy,
        id: u64,
        decided: Option<(&Event, &Arc<Decision>)>,
    ) -> Option<Answer> {
        let desk = self.desk(caller, id);
        let perform = || {
            let performed = match &copy {
                Copy::Numbers => return Some(Answer::Continue),
                Copy::Exec(_) | Copy::Accept(_) => return Some(Answer::Errno(libc::EPERM)),
                Copy::Groups(groups) => {
                    let result = verified::groups(&self.listener, &self.view, &self.holder, id, caller, groups);
                    let (event, decision) = decided?;
                    return self.verified(event, decision, result);
                }
                Copy::Connect(held, target) => perform::connect(&desk, held, target),
                Copy::Bind(held, target) => perform::bind(&desk, held, target),
                Copy::Listen(held, backlog, local) => perform::listen(&desk, held, *backlog, local),
                Copy::Send(held, message) => perform::send(&desk, held, message),
            };
            self.performed(caller, performed, id, decided)
        };
        self.once(caller, id, self.cookie(copy.socket()), || copy.fingerprint(), perform)
    }

    /// What [`Self::once`] knows a socket by. Where callers are kept nobody asks.
    fn cookie(&self, held: Option<&Held>) -> Option<u64> {
        held.filter(|_| !self.listener.keeps_callers()).and_then(Held::cookie)
    }

    fn performed(
        &self,
        caller: &Caller,
        performed: Performed,
        id: u64,
        decided: Option<(&Event, &Arc<Decision>)>,
    ) -> Option<Answer> {
        match performed {
            Performed::Answer(answer) => Some(answer),
            Performed::Gone => {
                self.callers.forget(caller);
                None
            }
            Performed::Pipe => self.broken_pipe(caller, id, Answer::Errno(libc::EPIPE)),
            Performed::Interrupted { restartable } => {
                let _ = waiting::interrupt(&self.listener, &self.holder, id, caller, restartable);
                None
            }
            Performed::Mismatch => {
                let subject = self.subject(caller);
                let _ = pidfd::signal(caller.pidfd(), libc::SIGKILL);
                let (event, decision) = decided?;
                let event = Event { time_ms: now_ms(), subject, ..event.clone() };
                self.verified(&event, decision, Ok(Verified::Killed("a socket was made elsewhere".to_owned())))
            }
        }
    }

    /// SIGPIPE, and an answer.
    fn broken_pipe(&self, caller: &Caller, id: u64, answer: Answer) -> Option<Answer> {
        let raise = || pidfd::signal_thread(caller.pid, caller.tid, libc::SIGPIPE);
        if self.listener.keeps_callers() {
            if self.listener.is_valid(id) {
                let _ = raise();
            }
            return Some(answer);
        }
        // Before the answer the signal would end the call, and start it again.
        if self.listener.send(id, answer).is_ok() {
            let _ = raise();
        }
        None
    }

    /// sendmmsg(2): each message for itself, until one fails.
    pub(super) fn send_messages(
        &self,
        caller: &Arc<Caller>,
        held: &Held,
        vector: u64,
        count: u64,
        flags: i32,
        call: &Notification,
    ) -> Option<Answer> {
        let mut sent = 0;
        let cookie = self.cookie(Some(held));
        let mut unheard = Vec::new();
        let failed = loop {
            if sent == count {
                break None;
            }
            let at = vector.wrapping_add(sent * (network::HEADER_SIZE + 8));
            let message = match network::copy_message(&self.view, &self.own, caller, held, at, flags) {
                Ok(message) => message,
                Err(errno) => break Some(Answer::Errno(errno as i32)),
            };
            if !self.listener.is_valid(call.id) {
                if let Some(socket) = cookie {
                    self.unheard.keep(&self.view, caller, socket, unheard);
                }
                return None;
            }
            let ours = match held.fd.try_clone() {
                Ok(fd) => Held { fd, socket: held.socket },
                Err(_) => break Some(Answer::Errno(libc::ENOMEM)),
            };
            let copy = match intercept::sending(self.wanted, ours, message) {
                Intercepted::Event(action, copy) => {
                    let Decided { event, decision, .. } = match self.decide(caller, action, None, call) {
                        Ok(decided) => decided,
                        Err(answer) => break Some(answer),
                    };
                    if let Some(answer) = self.denied(&event, &decision, decision.errno(event.kind())) {
                        break Some(answer);
                    }
                    copy
                }
                Intercepted::Ungoverned(copy) => copy,
                _ => break Some(Answer::Errno(libc::EPERM)),
            };
            let Copy::Send(held, message) = &copy else { break Some(Answer::Errno(libc::EPERM)) };
            let known = cookie.and_then(|socket| {
                self.unheard.recall(&self.view, caller, socket, || copy.fingerprint()).map(Performed::Answer)
            });
            match known.unwrap_or_else(|| perform::send(&self.desk(caller, call.id), held, message)) {
                Performed::Answer(answer @ Answer::Value(length)) => {
                    if cookie.is_some() {
                        unheard.push((copy.fingerprint(), answer));
                    }
                    let at = at.wrapping_add(network::HEADER_SIZE);
                    if let Err(errno) = caller.write(at, &(length as u32).to_ne_bytes()) {
                        break Some(Answer::Errno(errno as i32));
                    }
                    sent += 1;
                }
                other if sent == 0 => return self.performed(caller, other, call.id, None),
                Performed::Pipe => return self.broken_pipe(caller, call.id, Answer::Value(sent as i64)),
                _ => break None,
            }
        };
        let answer = if sent > 0 { Answer::Value(sent as i64) } else { failed.unwrap_or(Answer::Value(0)) };
        let Some(socket) = cookie else { return Some(answer) };
        if self.listener.send(call.id, answer).is_err() {
            self.unheard.keep(&self.view, caller, socket, unheard);
        }
        None
    }

    /// accept(2): a connection whose peer is denied is closed, and the next one waited for.
    pub(super) fn accept(&self, caller: &Arc<Caller>, held: &Held, flags: i32, call: &Notification) -> Option<Answer> {
        if self.mode() == Mode::DryRun {
            return Some(Answer::Continue);
        }
        let listening = self.cookie(Some(held));
        let numbered = |number: i64| {
            let Some(socket) = listening else { return Some(Answer::Value(number)) };
            if self.listener.send(call.id, Answer::Value(number)).is_err() {
                self.unheard.keep(&self.view, caller, socket, [(0, Answer::Value(number))]);
            }
            None
        };
        let recalled = listening.and_then(|socket| self.unheard.recall(&self.view, caller, socket, || 0));
        if let Some(Answer::Value(number)) = recalled {
            // It has the connection already, but not this time's buffer the peer.
            let peer = caller.descriptor(number as i32).and_then(socket::peer_address);
            let _ = tell_peer(caller, call, &peer.unwrap_or_default());
            return numbered(number);
        }
        // Before the queue is touched, as in the kernel (`__sys_accept4_file`, net/socket.c).
        if !caller.has_room_for_a_descriptor() {
            return Some(Answer::Errno(libc::EMFILE));
        }
        let keep = |connection: Held, peer| {
            if let Some(socket) = held.cookie() {
                self.unheard.keep_connection(socket, connection.fd, peer);
            }
        };
        loop {
            let (connection, peer) = match self.unheard.connection(|| held.cookie()) {
                Some((fd, peer)) => (Held { fd, socket: held.socket }, peer),
                None => match perform::accept(&self.desk(caller, call.id), held) {
                    Ok(accepted) => accepted,
                    Err(performed) => return self.performed(caller, performed, call.id, None),
                },
            };
            let action = intercept::accepted(held, &connection, &peer);
            let Decided { event, decision, .. } = match self.decide(caller, action, None, call) {
                Ok(decided) => decided,
                Err(answer) => {
                    keep(connection, peer);
                    return Some(answer);
                }
            };
            if self.denied(&event, &decision, decision.errno(event.kind())).is_some() {
                continue;
            }
            if flags & libc::SOCK_NONBLOCK != 0 {
                let _ = nix::fcntl::fcntl(&connection.fd, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
            }
            // One who has been interrupted goes on, and uses the memory for something else; or it is gone.
            if !self.listener.is_valid(call.id) {
                keep(connection, peer);
                return None;
            }
            if let Err(errno) = tell_peer(caller, call, &peer) {
                return Some(Answer::Errno(errno as i32));
            }
            let cloexec = flags & libc::SOCK_CLOEXEC != 0;
            // Our copy is closed before the caller can close its own: who is at the other end would take it for open still. But
            // before Linux 5.19 a signal might come in between.
            let handed_over = if self.listener.keeps_callers() {
                self.listener.add_descriptor(call.id, connection.fd.as_fd(), cloexec).map(Some)
            } else {
                self.listener.send_descriptor(call.id, connection.fd.as_fd(), cloexec)
            };
            return match handed_over {
                Ok(None) => None,
                Ok(Some(number)) => {
                    drop(connection);
                    numbered(number.into())
                }
                Err(error) => {
                    keep(connection, peer);
                    match error.raw_os_error() {
                        Some(libc::ENOENT | libc::ESRCH) => None,
                        errno => Some(Answer::Errno(errno.unwrap_or(libc::EMFILE))),
                    }
                }
            };
        }
    }
}

fn tell_peer(caller: &Caller, call: &Notification, peer: &[u8]) -> Result<(), Errno> {
    let (address, length) = (call.args[1], call.args[2]);
    if address == 0 {
        return Ok(());
    }
    let room = caller.copy(length, 4)?;
    let room = i32::from_ne_bytes([room[0], room[1], room[2], room[3]]);
    let room = usize::try_from(room).map_err(|_| Errno::EINVAL)?; // `move_addr_to_user` (net/socket.c)
    caller.write(address, &peer[..room.min(peer.len())])?;
    caller.write(length, &(peer.len() as u32).to_ne_bytes())
}
