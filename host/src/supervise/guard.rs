//! Calls that name a task or a process group, and signals: none of them may be meant for us.

use std::hash::{DefaultHasher, Hash, Hasher};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode as FileMode, fstatat};

use super::{NO_SOCKET, Office};
use crate::audit::Outcome;
use crate::enforce::signals;
use crate::event::Subject;
use crate::intercept::caller::Caller;
use crate::intercept::calls::Call;
use crate::sys::notify::{Answer, Notification};

impl Office {
    /// A call that names a task, or a signal: not against us.
    pub(super) fn guard(&self, caller: &Caller, call: Call, notification: &Notification) -> Option<Answer> {
        // Numbers of another pid namespace. The supervisor has none in there, so the kernel finds nobody to harm.
        let Ok(status) = caller.status() else { return Some(Answer::Errno(libc::EPERM)) };
        if status.ids.len() > 1 {
            return match call {
                Call::PidfdSendSignal => self.signal_by_descriptor(caller, notification),
                _ => Some(Answer::Continue),
            };
        }
        let refused =
            |why: &str| Some(self.refuse_always(self.subject(caller), notification, "supervisor-protected", why));
        let (first, second) = (notification.args[0] as i32, notification.args[1] as i32);
        let target = match call {
            Call::Task("kill") if first == -1 => {
                let ours = |pid| self.is_ours(pid);
                let work = || Some(signals::to_everybody(&self.view, caller, second, ours));
                self.relay.hand_over();
                return self.once(caller, notification.id, Some(NO_SOCKET), || second as u64, work);
            }
            Call::Task("kill") if first < 0 => return refused("a signal to the supervisor's group"),
            Call::Task("ptrace") => second,
            Call::Task(_) => first,
            // A group or a user: nobody but us must be among them.
            Call::TaskOrMany(name) => match (first - i32::from(name == "ioprio_set"), second) {
                (0, task) => task,
                (1, group) if group == self.group() => return refused("it is meant for the supervisor's group"),
                (1, _) => return Some(Answer::Continue),
                _ => return refused("it is meant for all processes of a user, and so for the supervisor"),
            },
            Call::PidfdSendSignal => return self.signal_by_descriptor(caller, notification),
            _ => return refused("a signal that cannot be blocked, on behalf of a file"),
        };
        if self.is_ours(target as u32) {
            return refused("it is meant for the supervisor");
        }
        // What is not there now may have our number in a moment, if it is one of our threads.
        let name = target.to_string();
        if target > 0
            && openat(self.view.proc(), name.as_str(), OFlag::O_PATH | OFlag::O_CLOEXEC, FileMode::empty()).is_err()
        {
            return Some(Answer::Errno(libc::ESRCH));
        }
        Some(Answer::Continue)
    }

    /// pidfd_send_signal(2). Another thread may put another descriptor in the place of this one at any time, so the signal
    /// is sent here, to the process that was found.
    fn signal_by_descriptor(&self, caller: &Caller, notification: &Notification) -> Option<Answer> {
        let ours = |pid| self.is_ours(pid);
        let signal = match signals::by_descriptor(&self.view, caller, notification.args, ours) {
            Ok(Ok(signal)) => signal,
            Ok(Err(answer)) => return Some(answer),
            Err(why) => {
                let subject = self.subject(caller);
                return Some(self.refuse_always(subject, notification, "supervisor-protected", why));
            }
        };
        if signal.for_itself && !self.listener.keeps_callers() {
            // Before the answer the signal would end the call, and start it again.
            if self.listener.send(notification.id, Answer::Value(0)).is_ok() {
                signal.send();
            }
            return None;
        }
        let call = || {
            let mut hasher = DefaultHasher::new();
            notification.args.hash(&mut hasher);
            hasher.finish()
        };
        self.once(caller, notification.id, Some(NO_SOCKET), call, || Some(signal.send()))
    }

    fn group(&self) -> i32 {
        nix::unistd::getpgrp().as_raw()
    }

    fn is_ours(&self, target: u32) -> bool {
        let task = format!("self/task/{target}");
        // Only a clear no is one: we may have run out of something.
        let found = fstatat(self.view.proc(), task.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
        self.guardian == Some(target) || target == std::process::id() || found != Err(Errno::ENOENT)
    }

    /// Our own safety is no matter of the mode.
    pub(super) fn refuse_always(&self, subject: Subject, call: &Notification, rule: &str, why: &str) -> Answer {
        self.record_refusal(subject, call, rule, why, Errno::EPERM, Outcome::Denied);
        Answer::Errno(libc::EPERM)
    }
}
