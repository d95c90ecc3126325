//! Asking the kernel about AF_UNIX sockets (sock_diag(7)).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};

/// The cookie (see [`super::socket::cookie`]) of the socket that this one is connected to, or sends to; `None` if the kernel
/// does not tell: there is none, the socket is in another network namespace, or the kernel was built without it.
pub fn unix_peer(of: impl AsFd) -> Option<u64> {
    let inode = nix::sys::stat::fstat(of.as_fd()).ok()?.st_ino as u32;
    let answer = ask(inode).ok()?;
    let (_, peer) = attributes(&answer).find(|(kind, _)| *kind == UNIX_DIAG_PEER)?;
    // A socket that has been closed, or not been accepted yet, has no inode.
    let peer = peer.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes)).filter(|inode| *inode != 0)?;
    let halves: [u8; 8] = ask(peer).ok()?.get(COOKIE..COOKIE + 8)?.try_into().ok()?;
    // Two numbers of 32 bits, the lower one first (sock_diag_save_cookie, net/core/sock_diag.c).
    let half = |at: usize| u64::from(u32::from_ne_bytes([halves[at], halves[at + 1], halves[at + 2], halves[at + 3]]));
    Some(half(0) | half(4) << 32)
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
/// linux/unix_diag.h: what to show, and the attribute in which it comes.
const UDIAG_SHOW_PEER: u32 = 4;
const UNIX_DIAG_PEER: u16 = 2;
/// `sizeof(struct nlmsghdr)` and `sizeof(struct unix_diag_msg)`, which precede the attributes.
const BEFORE_ATTRIBUTES: usize = 16 + 16;
/// Where the latter has the cookie.
const COOKIE: usize = 16 + 8;

/// `struct nlmsghdr` and `struct unix_diag_req`.
#[repr(C)]
struct Request {
    length: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
    family: u8,
    protocol: u8,
    pad: u16,
    states: u32,
    inode: u32,
    show: u32,
    cookie: [u32; 2],
}

fn ask(inode: u32) -> io::Result<Vec<u8>> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let diag: OwnedFd = socket(AddressFamily::Netlink, SockType::Datagram, flags, SockProtocol::NetlinkSockDiag)?;
    let request = Request {
        length: size_of::<Request>() as u32,
        kind: SOCK_DIAG_BY_FAMILY,
        flags: NLM_F_REQUEST,
        sequence: 1,
        port: 0,
        family: libc::AF_UNIX as u8,
        protocol: 0,
        pad: 0,
        states: u32::MAX,
        inode,
        show: UDIAG_SHOW_PEER,
        cookie: [u32::MAX; 2],
    };
    // SAFETY: pointer and length describe `request`, which has no padding.
    let sent = unsafe { libc::send(diag.as_raw_fd(), (&raw const request).cast(), size_of::<Request>(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut answer = vec![0; 4096];
    // The kernel answers before send returns.
    let length = recv(diag.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT)?;
    answer.truncate(length);
    let kind = answer.get(4..6).map(|kind| u16::from_ne_bytes([kind[0], kind[1]]));
    if kind == Some(SOCK_DIAG_BY_FAMILY) { Ok(answer) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// The attributes of an answer: number and value.
fn attributes(answer: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = answer.get(BEFORE_ATTRIBUTES..).unwrap_or_default();
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes([*rest.get(2)?, *rest.get(3)?]);
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_kernel_knows_to_whom_a_socket_is_connected() {
        let (one, other) = UnixStream::pair().unwrap();
        let cookie = crate::sys::socket::cookie(&other).unwrap();
        assert_eq!(unix_peer(&one), Some(cookie));
        drop(other);
        assert_eq!(unix_peer(&one), None);
    }
}
