//! What is remembered of sockets: of what kind they are, which saves a question; and what we did to AF_UNIX sockets on behalf
//! of others, which the kernel does not tell any more.
//!
//! It takes the process that makes the call for the one that wanted it, so whoever asks for the peer of a connection
//! (`SO_PEERCRED`) would be told of the supervisor; and of a bound socket it tells the path that was given to bind(2), which
//! may be relative, instead of the place where the socket is.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::event::Socket;
use crate::sys::{diag, socket};

/// Where a socket listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Place {
    /// At this file: device and inode.
    File(u64, u64),
    /// At this address as the kernel tells it: a name in the abstract name space.
    Name(Vec<u8>),
}

/// The processes at the two ends of a connection, if they connected and listened through us.
#[derive(Debug, Clone, Copy)]
struct Ends {
    connected: u32,
    listened: Option<u32>,
}

/// What is remembered: of the last so many, for nobody tells us when a socket is gone.
#[derive(Debug)]
pub struct Sockets {
    memory: Mutex<Memory>,
    /// Of what kind sockets are: each, with its cookie, in the place that the last bits of that say.
    kinds: Mutex<[Option<(u64, Socket)>; KINDS]>,
}

const KINDS: usize = 256;

impl Default for Sockets {
    fn default() -> Self {
        Self { memory: Mutex::default(), kinds: Mutex::new([None; KINDS]) }
    }
}

#[derive(Debug, Default)]
struct Memory {
    /// By the socket's cookie: an inode number comes again after 2^32 others.
    paths: Recent<u64, String>,
    listeners: Recent<Place, u32>,
    /// By the cookie of the socket that was connected.
    connections: Recent<u64, Ends>,
}

/// Asks the kernel what kind of socket this is.
///
/// # Errors
/// `ENOTSOCK` for anything that isn't one.
pub fn kind(socket: impl AsFd) -> io::Result<Socket> {
    let option = |name| socket::option(socket.as_fd(), name);
    Ok(Socket {
        family: option(libc::SO_DOMAIN)? as u16,
        kind: option(libc::SO_TYPE)? as u32,
        protocol: option(libc::SO_PROTOCOL)? as u32,
    })
}

impl Sockets {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same as [`kind`], with fewer questions for a socket that was seen lately.
    ///
    /// # Errors
    /// As [`kind`].
    pub fn kind(&self, socket: impl AsFd) -> io::Result<Socket> {
        let kinds = || self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let cookie = socket::cookie(socket.as_fd())?;
        let place = cookie as usize % KINDS;
        if let Some((_, known)) = kinds()[place].filter(|(seen, _)| *seen == cookie) {
            // Nothing of it ever changes, but that an IPv6 socket can be made an IPv4 one (`IPV6_ADDRFORM`, ipv6(7)).
            let family = match i32::from(known.family) {
                libc::AF_INET6 => socket::option(socket, libc::SO_DOMAIN)? as u16,
                _ => known.family,
            };
            return Ok(Socket { family, ..known });
        }
        let found = kind(socket)?;
        kinds()[place] = Some((cookie, found));
        Ok(found)
    }

    /// The socket was bound to this path.
    pub fn was_bound(&self, socket: impl AsFd, path: String) {
        if let Ok(cookie) = socket::cookie(socket) {
            self.memory().paths.insert(cookie, path);
        }
    }

    /// Where it was bound to, if that was by us, and to a path.
    pub fn bound(&self, socket: impl AsFd) -> Option<String> {
        self.memory().paths.get(&socket::cookie(socket).ok()?).cloned()
    }

    /// A process listens at this place.
    pub fn listens(&self, at: Place, process: u32) {
        self.memory().listeners.insert(at, process);
    }

    /// A process has connected this socket to what listens at this place.
    pub fn was_connected(&self, socket: impl AsFd, to: &Place, process: u32) {
        if let Ok(cookie) = socket::cookie(socket) {
            let mut memory = self.memory();
            let listened = memory.listeners.get(to).copied();
            memory.connections.insert(cookie, Ends { connected: process, listened });
        }
    }

    /// The process at the other end of a connection, if it was there through us.
    pub fn peer(&self, socket: impl AsFd) -> Option<u32> {
        if let Some(ends) = self.memory().connections.get(&socket::cookie(socket.as_fd()).ok()?) {
            return ends.listened;
        }
        let other = diag::unix_peer(socket)?;
        self.memory().connections.get(&other).map(|ends| ends.connected)
    }
}

/// A map of the last [`Recent::MOST`] keys.
#[derive(Debug)]
struct Recent<K, V> {
    values: HashMap<K, V>,
    order: VecDeque<K>,
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Self { values: HashMap::new(), order: VecDeque::new() }
    }
}

impl<K: Clone + Eq + Hash, V> Recent<K, V> {
    const MOST: usize = 1 << 14;

    fn insert(&mut self, key: K, value: V) {
        if self.values.insert(key.clone(), value).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > Self::MOST {
            if let Some(oldest) = self.order.pop_front() {
                self.values.remove(&oldest);
            }
        }
    }

    fn get(&self, key: &K) -> Option<&V> {
        self.values.get(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_keeps_the_latest() {
        let mut recent = Recent::default();
        for key in 0..100_000 {
            recent.insert(key, key);
        }
        assert_eq!((recent.values.len(), recent.order.len()), (1 << 14, 1 << 14));
        assert_eq!((recent.get(&99_999), recent.get(&0)), (Some(&99_999), None));
    }
}
