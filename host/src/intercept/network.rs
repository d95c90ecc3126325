//! Socket calls → endpoints.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::event::{Address, Endpoint, File, Socket};
use crate::intercept::caller::{Caller, IdKind};
use crate::intercept::path::View;
use crate::sys::credentials::{CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN, CAP_SYS_PTRACE, Own};
use crate::sys::{process, socket};

/// `sizeof(struct sockaddr_storage)`: the kernel takes no longer address.
const ADDRESS_MAX: usize = 128;
/// `UIO_MAXIOV`, and how many messages sendmmsg(2) takes.
pub const PARTS_MAX: u64 = 1024;
/// How much of a stream's payload we hold at a time.
const PAYLOAD_MAX: usize = 1 << 18;
/// The same with `MSG_ZEROCOPY`: more is not sent in one call.
const ZEROCOPY_MAX: usize = 1 << 22;
/// How long a datagram may be; it has to be held as a whole.
const DATAGRAM_MAX: usize = 16 << 20;
/// `MAX_RW_COUNT` (include/linux/fs.h): no call transfers more.
const TOTAL_MAX: u64 = 0x7fff_f000;
/// How long control messages may be: more than the kernel's default limit (`net.core.optmem_max`).
const CONTROL_MAX: u64 = 1 << 17;

/// The caller's socket, in our hands, and what kind it is.
#[derive(Debug)]
pub struct Held {
    /// Our copy of its descriptor.
    pub fd: OwnedFd,
    /// What kind it is.
    pub socket: Socket,
}

impl Held {
    /// Takes the socket that the caller's descriptor is. `kind` tells what kind that is.
    ///
    /// # Errors
    /// `EBADF`, `ENOTSOCK`; `EPERM` if we may not.
    pub fn take(caller: &Caller, fd: i32, kind: impl FnOnce(&OwnedFd) -> io::Result<Socket>) -> Result<Self, Errno> {
        let fd = caller.descriptor(fd).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EPERM)))?;
        let socket = kind(&fd).map_err(|_| Errno::ENOTSOCK)?;
        Ok(Self { fd, socket })
    }

    /// What tells the socket from all others.
    pub fn cookie(&self) -> Option<u64> {
        socket::cookie(&self.fd).ok()
    }

    /// Whether a call on it waits rather than failing with `EAGAIN`.
    pub fn blocks(&self) -> bool {
        fcntl(&self.fd, FcntlArg::F_GETFL)
            .is_ok_and(|flags| !OFlag::from_bits_truncate(flags).contains(OFlag::O_NONBLOCK))
    }

    /// Whether the kernel makes nothing of the address of a message: tcp_sendmsg, unix_stream_sendmsg and
    /// unix_seqpacket_sendmsg don't. `MSG_FASTOPEN` is another matter.
    pub fn ignores_addresses(&self) -> bool {
        match i32::from(self.socket.family) {
            libc::AF_INET | libc::AF_INET6 => self.is_stream() && self.socket.protocol != libc::IPPROTO_SCTP as u32,
            libc::AF_UNIX => self.socket.kind != libc::SOCK_DGRAM as u32,
            _ => false,
        }
    }

    /// Whether the kernel takes such an address in no call on this socket, so that it is no event but the caller's mistake,
    /// whose errno is the kernel's to tell: `unix_validate_addr` (net/unix/af_unix.c; but see bind(2), which takes an address
    /// without a name); `__inet_bind`, `tcp_v4_connect`, `__ip4_datagram_connect`, `udp_sendmsg` (net/ipv4), and those of
    /// net/ipv6. A socket of IPv6 may become one of IPv4, but none of IPv4 another.
    pub fn refuses(&self, address: &[u8]) -> bool {
        const UNIX_MAX: usize = size_of::<libc::sockaddr_un>();
        const TCP: (i32, i32) = (libc::SOCK_STREAM, libc::IPPROTO_TCP);
        const UDP: (i32, i32) = (libc::SOCK_DGRAM, libc::IPPROTO_UDP); // `raw_bind` (net/ipv4/raw.c) takes every family
        let family = address.first_chunk().map(|family| i32::from(u16::from_ne_bytes(*family)));
        match (i32::from(self.socket.family), (self.socket.kind as i32, self.socket.protocol as i32)) {
            _ if family == Some(libc::AF_UNSPEC) => false,
            (libc::AF_UNIX, _) => family != Some(libc::AF_UNIX) || !(3..=UNIX_MAX).contains(&address.len()),
            (libc::AF_INET, TCP | UDP) => family != Some(libc::AF_INET),
            (libc::AF_INET6, TCP | UDP) => !matches!(family, Some(libc::AF_INET6 | libc::AF_INET)),
            _ => false,
        }
    }

    /// Whether it is a stream, on which a part of the data may be sent.
    pub fn is_stream(&self) -> bool {
        self.socket.kind == libc::SOCK_STREAM as u32
    }
}

/// An address for the event, and the bytes that the kernel is given for it.
#[derive(Debug)]
pub struct Target {
    /// For the event.
    pub address: Address,
    /// For the kernel: the caller's own, or a path to the very socket file that was found.
    pub bytes: Vec<u8>,
    /// Keeps the socket file, or the directory that it is made in, for as long as `bytes` names it.
    pub file: Option<OwnedFd>,
}

/// Copies a socket address. One that is too short to be one is the caller's mistake and no event.
///
/// # Errors
/// `EINVAL`, `EFAULT`, as the kernel.
pub fn copy_address(caller: &Caller, held: &Held, pointer: u64, length: u64) -> Result<Vec<u8>, Errno> {
    let length = length as i32;
    if length < 0 || length as usize > ADDRESS_MAX {
        return Err(Errno::EINVAL);
    }
    let bytes = caller.copy(pointer, length as usize)?;
    if held.refuses(&bytes) {
        return Ok(bytes);
    }
    let Some(family) = bytes.first_chunk() else { return Err(Errno::EINVAL) };
    let shortest = match i32::from(u16::from_ne_bytes(*family)) {
        libc::AF_INET => 16,
        libc::AF_INET6 => 24, // SIN6_LEN_RFC2133, include/net/ipv6.h
        _ => 2,
    };
    let is_ip = matches!(i32::from(held.socket.family), libc::AF_INET | libc::AF_INET6);
    if is_ip && bytes.len() < shortest { Err(Errno::EINVAL) } else { Ok(bytes) }
}

/// What an address leads to: for a connection, or for a datagram.
///
/// # Errors
/// What the kernel would answer.
pub fn destination(view: &View, own: &Own, caller: &Caller, held: &Held, bytes: Vec<u8>) -> Result<Target, Errno> {
    if held.refuses(&bytes) {
        return Ok(plain(&held.socket, bytes));
    }
    let Some(path) = unix_path(&held.socket, &bytes) else { return Ok(plain(&held.socket, specific(held, bytes))) };
    let directory = view.caller_directory(caller, "cwd")?;
    let file = as_caller(view, own, caller, || view.resolve(caller, directory, path, true))?;
    let named = view.name(file.as_fd())?;
    let mut bytes = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
    // Through our own descriptor, not through the caller's names.
    bytes.extend_from_slice(process::path_to(&file).as_bytes());
    bytes.push(0);
    Ok(Target { address: Address::Unix { path: trusted(named) }, bytes, file: Some(file) })
}

/// What the address of a message leads to: nowhere, and it is not looked up, where the kernel ignores or refuses it.
///
/// # Errors
/// As [`destination`].
pub fn receiver(view: &View, own: &Own, caller: &Caller, held: &Held, bytes: Vec<u8>) -> Result<Target, Errno> {
    let ignored = i32::from(held.socket.family) == libc::AF_UNIX && held.ignores_addresses();
    if ignored { Ok(plain(&held.socket, bytes)) } else { destination(view, own, caller, held, bytes) }
}

/// A destination of no address, 0.0.0.0 or ::, with the one that the kernel would take: this machine's, but which, depends on
/// the socket (`ip_route_output_key_hash_rcu`, net/ipv4/route.c; `tcp_v6_connect`, `udpv6_sendmsg`). It may be bound to
/// another in the meantime, so the kernel is told.
fn specific(held: &Held, mut bytes: Vec<u8>) -> Vec<u8> {
    let local = || match socket::local_address(&held.fd).map(|local| decode(&held.socket, &local)) {
        Ok(Address::Ipv4 { ip, .. }) if !ip.is_unspecified() => ip,
        _ => Ipv4Addr::LOCALHOST,
    };
    let family = bytes.first_chunk().map_or(0, |family| i32::from(u16::from_ne_bytes(*family)));
    match (family, decode(&held.socket, &bytes)) {
        (libc::AF_INET6, Address::Ipv4 { ip, .. }) if ip.is_unspecified() => {
            bytes[8..24].copy_from_slice(&local().to_ipv6_mapped().octets());
        }
        (_, Address::Ipv4 { ip, .. }) if ip.is_unspecified() => bytes[4..8].copy_from_slice(&local().octets()),
        (_, Address::Ipv6 { ip, .. }) if ip.is_unspecified() => {
            let mapped = socket::local_address(&held.fd)
                .is_ok_and(|local| matches!(decode(&held.socket, &local), Address::Ipv4 { .. }));
            let ip = if mapped { Ipv4Addr::LOCALHOST.to_ipv6_mapped() } else { Ipv6Addr::LOCALHOST };
            bytes[8..24].copy_from_slice(&ip.octets());
        }
        _ => {}
    }
    bytes
}

/// What an address would make the socket's own.
///
/// # Errors
/// What the kernel would answer.
pub fn local(view: &View, own: &Own, caller: &Caller, held: &Held, bytes: Vec<u8>) -> Result<Target, Errno> {
    let path = unix_path(&held.socket, &bytes).filter(|_| !held.refuses(&bytes));
    let Some(path) = path else { return Ok(plain(&held.socket, bytes)) };
    let directory = view.caller_directory(caller, "cwd")?;
    let (parent, name) = as_caller(view, own, caller, || view.resolve_parent(caller, directory, path))?;
    let mut named = view.name(parent.as_fd())?;
    named.path = format!("{}/{}", named.path.trim_end_matches('/'), name.to_string_lossy());
    named.canonical &= name.to_str().is_some();
    Ok(Target { address: Address::Unix { path: trusted(named) }, bytes, file: Some(parent) })
}

/// Looks something up with the caller's rights: it must not reach through us what it may not search itself.
/// `CAP_SYS_PTRACE` lets us read `/proc/PID/root` of a caller that is not dumpable, and nothing else here.
fn as_caller<T>(view: &View, own: &Own, caller: &Caller, work: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    own.act_as(&*caller.identity(view)?, CAP_SYS_PTRACE, || work().map_err(Into::into))
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EACCES)))
}

/// The address of a socket that the kernel told us.
pub fn known(family: u16, bytes: &[u8]) -> Address {
    let socket = Socket { family, kind: 0, protocol: 0 };
    match unix_path(&socket, bytes).map(<[u8]>::to_vec).map(String::from_utf8) {
        Some(Ok(path)) => Address::Unix { path },
        _ => decode(&socket, bytes),
    }
}

/// A path that is not ours, or that cannot be written down as it is, must not look like one that is.
fn trusted(named: crate::event::File) -> String {
    match named {
        File { canonical: true, path, .. } => path,
        File { path, .. } if path.contains(char::REPLACEMENT_CHARACTER) => format!("(not UTF-8){path}"),
        File { path, .. } => format!("(another mount){path}"),
    }
}

fn plain(socket: &Socket, mut bytes: Vec<u8>) -> Target {
    let address = decode(socket, &bytes);
    if address == Address::Unspecified {
        // What else is in it means nothing now, but would if the socket became one of IPv4 meanwhile (IPV6_ADDRFORM).
        bytes[2..].fill(0);
    }
    Target { address, bytes, file: None }
}

fn unix_path<'a>(socket: &Socket, bytes: &'a [u8]) -> Option<&'a [u8]> {
    let path = bytes.get(2..)?;
    let is_unix =
        i32::from(socket.family) == libc::AF_UNIX && u16::from_ne_bytes([bytes[0], bytes[1]]) == libc::AF_UNIX as u16;
    if !is_unix || path.is_empty() || path[0] == 0 {
        return None;
    }
    Some(path.split(|byte| *byte == 0).next().unwrap_or(path))
}

/// Decodes an address as the kernel will understand it on this socket.
pub fn decode(socket: &Socket, bytes: &[u8]) -> Address {
    let Some((family, rest)) = bytes.split_at_checked(2) else {
        return Address::Other { number: 0, data: hex::encode(bytes) };
    };
    let family = u16::from_ne_bytes([family[0], family[1]]);
    let u16_at = |at: usize| rest.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]));
    let u32_at = |at: usize| rest.get(at..at + 4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
    let ipv4 = || {
        let ip: [u8; 4] = rest.get(2..6)?.try_into().ok()?;
        Some(Address::Ipv4 { ip: Ipv4Addr::from(ip), port: u16_at(0)? })
    };
    let ipv6 = || {
        let ip: [u8; 16] = rest.get(6..22)?.try_into().ok()?;
        let (ip, port) = (Ipv6Addr::from(ip), u16_at(0)?);
        Some(match ip.to_ipv4_mapped() {
            Some(ip) => Address::Ipv4 { ip, port },
            None => Address::Ipv6 { ip, port, scope: u32_at(22).unwrap_or(0) },
        })
    };
    let decoded = match i32::from(family) {
        libc::AF_INET => ipv4(),
        libc::AF_INET6 => ipv6(),
        // An IPv4 socket takes AF_UNSPEC for AF_INET in bind and in datagrams (net/ipv4/af_inet.c, udp.c, raw.c). For
        // connect it dissolves the association, but an address that would have to be allowed as a destination costs a
        // program nothing unless it is one.
        libc::AF_UNSPEC if i32::from(socket.family) == libc::AF_INET => match ipv4() {
            Some(Address::Ipv4 { ip, port }) if !ip.is_unspecified() || port != 0 => Some(Address::Ipv4 { ip, port }),
            _ => Some(Address::Unspecified),
        },
        libc::AF_UNSPEC => Some(Address::Unspecified),
        libc::AF_UNIX if rest.is_empty() => Some(Address::UnixUnnamed),
        // A name that cannot be written down as it is must not pass for another.
        libc::AF_UNIX if rest[0] == 0 => {
            String::from_utf8(rest[1..].to_vec()).ok().map(|name| Address::UnixAbstract { name })
        }
        libc::AF_NETLINK => match (u32_at(2), u32_at(6)) {
            (Some(pid), Some(groups)) => Some(Address::Netlink { pid, groups }),
            _ => None,
        },
        libc::AF_VSOCK => match (u32_at(2), u32_at(6)) {
            (Some(port), Some(cid)) => Some(Address::Vsock { cid, port }),
            _ => None,
        },
        _ => None,
    };
    decoded.unwrap_or_else(|| Address::Other { number: family, data: hex::encode(rest) })
}

/// One message to be sent: the private copy of it.
#[derive(Debug, Default)]
pub struct Message {
    /// Where to, if the caller said.
    pub target: Option<Target>,
    /// The payload, or as much of a stream's as we hold at a time.
    pub data: Payload,
    /// The rest of it.
    pub rest: Rest,
    /// Control messages, with our copies of the descriptors in them, and without a claim about the sender.
    pub control: Vec<u8>,
    /// Who the sender says that it is, if it does: process, user and group.
    pub claim: Option<[u32; 3]>,
    /// The caller's flags.
    pub flags: i32,
    /// Our copies of descriptors that `control` passes on.
    pub passed: Vec<OwnedFd>,
}

/// How much payload is held at the moment, for all callers together.
static HELD: AtomicUsize = AtomicUsize::new(0);

/// A copy of a payload. A crowd of callers that wait with long ones must not take all memory: when much is held, streams
/// are copied in smaller parts and datagrams refused.
#[derive(Debug, Default)]
pub struct Payload {
    bytes: Vec<u8>,
    /// What is counted for it: from before it was copied, for that may take long.
    room: usize,
}

impl Payload {
    fn is_scarce(more: usize) -> bool {
        const HELD_MAX: usize = 128 << 20;
        HELD.load(Relaxed) + more > HELD_MAX
    }

    fn with_room_for(length: usize) -> Self {
        HELD.fetch_add(length, Relaxed);
        Self { bytes: Vec::new(), room: length }
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        HELD.fetch_sub(self.room, Relaxed);
    }
}

impl std::ops::Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Where in the caller's memory the rest of a payload is. Nothing was decided on it, and it is read once, too: when what is
/// before it has been sent.
#[derive(Debug, Clone, Default, Hash)]
pub struct Rest(VecDeque<(u64, u64)>);

impl Rest {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Copies the next part of it; nothing if there is none.
    ///
    /// # Errors
    /// `EFAULT`.
    pub fn take(&mut self, caller: &Caller) -> Result<Payload, Errno> {
        const LITTLE: usize = 4096;
        self.take_at_most(caller, if Payload::is_scarce(PAYLOAD_MAX) { LITTLE } else { PAYLOAD_MAX })
    }

    fn take_at_most(&mut self, caller: &Caller, limit: usize) -> Result<Payload, Errno> {
        let whole: u64 = self.0.iter().map(|(_, length)| length).sum();
        let mut payload = Payload::with_room_for(whole.min(limit as u64) as usize);
        let data = &mut payload.bytes;
        while data.len() < limit {
            let Some((base, length)) = self.0.pop_front() else { break };
            let now = length.min((limit - data.len()) as u64);
            let part = caller.copy(base, now as usize)?;
            if data.is_empty() {
                *data = part
            } else {
                data.extend(part)
            }
            if now < length {
                self.0.push_front((base.wrapping_add(now), length - now));
            }
        }
        Ok(payload)
    }
}

/// Copies a payload, given as addresses and lengths.
///
/// # Errors
/// `EFAULT`; `EMSGSIZE` for a datagram that is too long; `ENOBUFS` if too much is held already.
pub fn copy_payload(
    caller: &Caller,
    held: &Held,
    flags: i32,
    parts: VecDeque<(u64, u64)>,
) -> Result<(Payload, Rest), Errno> {
    // import_iovec (lib/iov_iter.c): a negative length is refused, and what is more than MAX_RW_COUNT is not sent.
    let (mut whole, mut parts) = (0, parts);
    for (_, length) in &mut parts {
        if *length > i64::MAX as u64 {
            return Err(Errno::EINVAL);
        }
        *length = (*length).min(TOTAL_MAX - whole);
        whole += *length;
    }
    let mut rest = Rest(parts);
    if held.is_stream() {
        let in_one_piece = flags & libc::MSG_ZEROCOPY != 0 && !Payload::is_scarce(ZEROCOPY_MAX);
        let first = if in_one_piece { rest.take_at_most(caller, ZEROCOPY_MAX)? } else { rest.take(caller)? };
        return Ok((first, rest));
    }
    if whole > PAYLOAD_MAX as u64 {
        // No protocol takes a datagram that is longer than the socket's buffer.
        let buffer = socket::option(&held.fd, libc::SO_SNDBUF).unwrap_or(0) as u64;
        if whole > buffer.min(DATAGRAM_MAX as u64) {
            return Err(Errno::EMSGSIZE);
        }
    }
    if Payload::is_scarce(whole as usize) {
        return Err(Errno::ENOBUFS);
    }
    Ok((rest.take_at_most(caller, DATAGRAM_MAX)?, Rest::default()))
}

/// `struct msghdr` of the caller, as numbers.
struct Header {
    name: u64,
    name_length: u32,
    parts: u64,
    parts_count: u64,
    control: u64,
    control_length: u64,
}

/// Size of `struct msghdr` on 64-bit machines; `struct mmsghdr` is 8 longer.
pub const HEADER_SIZE: u64 = 56;

/// Copies a message of sendmsg(2).
///
/// # Errors
/// What the kernel would answer.
pub fn copy_message(
    view: &View,
    own: &Own,
    caller: &Caller,
    held: &Held,
    pointer: u64,
    flags: i32,
) -> Result<Message, Errno> {
    let raw = caller.copy(pointer, HEADER_SIZE as usize)?;
    let word = |at: usize| u64::from_ne_bytes(raw[at..at + 8].try_into().unwrap_or_default());
    let header = Header {
        name: word(0),
        name_length: word(8) as u32,
        parts: word(16),
        parts_count: word(24),
        control: word(32),
        control_length: word(40),
    };
    if header.parts_count > PARTS_MAX {
        return Err(Errno::EMSGSIZE);
    }
    if header.control_length > CONTROL_MAX {
        return Err(Errno::ENOBUFS);
    }
    let mut message = Message { flags, ..Message::default() };
    if header.name != 0 && header.name_length != 0 {
        // The kernel cuts a longer name (`__copy_msghdr`, net/socket.c).
        let length = if (header.name_length as i32) < 0 { return Err(Errno::EINVAL) } else { header.name_length };
        let bytes = copy_address(caller, held, header.name, u64::from(length).min(ADDRESS_MAX as u64))?;
        message.target = Some(receiver(view, own, caller, held, bytes)?);
    }
    let parts = caller.copy(header.parts, header.parts_count as usize * 16)?;
    let number = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
    let parts = parts.chunks_exact(16).map(|part| (number(&part[..8]), number(&part[8..]))).collect();
    (message.data, message.rest) = copy_payload(caller, held, flags, parts)?;
    if header.control != 0 && header.control_length != 0 {
        let control = caller.copy(header.control, header.control_length as usize)?;
        translate_control(view, caller, control, &mut message)?;
    }
    Ok(message)
}

/// Replaces what in control messages means something else to us than to the caller: its descriptors, and itself.
fn translate_control(view: &View, caller: &Caller, mut control: Vec<u8>, message: &mut Message) -> Result<(), Errno> {
    const HEADER: usize = 16; // sizeof(struct cmsghdr)
    const SCM_MAX_FD: usize = 253; // include/net/scm.h
    let mut at = 0;
    while at + HEADER <= control.len() {
        let length = usize::from_ne_bytes(control[at..at + 8].try_into().unwrap_or_default());
        let level = i32::from_ne_bytes(control[at + 8..at + 12].try_into().unwrap_or_default());
        let kind = i32::from_ne_bytes(control[at + 12..at + 16].try_into().unwrap_or_default());
        if length < HEADER || length > control.len() - at {
            return Err(Errno::EINVAL);
        }
        let next = at + length.next_multiple_of(8);
        match (level, kind) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                for fd in control[at + HEADER..at + length].chunks_exact_mut(4) {
                    if message.passed.len() == SCM_MAX_FD {
                        return Err(Errno::EINVAL);
                    }
                    let theirs = i32::from_ne_bytes([fd[0], fd[1], fd[2], fd[3]]);
                    let ours = caller.descriptor(theirs).map_err(|_| Errno::EBADF)?;
                    fd.copy_from_slice(&ours.as_raw_fd().to_ne_bytes());
                    message.passed.push(ours);
                }
            }
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => {
                message.claim = Some(claim(view, caller, &control[at + HEADER..at + length])?);
                control.drain(at..next.min(control.len()));
                continue;
            }
            // A routing header sends the packet somewhere else first than to the address that was decided on, and SCTP takes
            // more addresses to connect to.
            (libc::IPPROTO_IPV6, libc::IPV6_RTHDR | IPV6_2292RTHDR)
            | (libc::IPPROTO_IP, libc::IP_RETOPTS)
            | (libc::IPPROTO_SCTP, SCTP_DSTADDRV4 | SCTP_DSTADDRV6) => return Err(Errno::EPERM),
            _ => {}
        }
        at = next;
    }
    message.control = control;
    Ok(())
}

/// The routing header of RFC 2292 (linux/in6.h).
const IPV6_2292RTHDR: i32 = 5;
/// linux/sctp.h.
const SCTP_DSTADDRV4: i32 = 7;
const SCTP_DSTADDRV6: i32 = 8;

/// `scm_check_creds` (net/core/scm.c): who may say that a message is from whom. The kernel will ask this about us, who may
/// say more than the caller may.
fn claim(view: &View, caller: &Caller, bytes: &[u8]) -> Result<[u32; 3], Errno> {
    let number = |n: usize| bytes.get(n * 4..n * 4 + 4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
    let (Some(pid), Some(uid), Some(gid)) = (number(0), number(1), number(2)) else { return Err(Errno::EINVAL) };
    if bytes.len() != 12 {
        return Err(Errno::EINVAL);
    }
    let [uid] = caller.known_to_us(view, IdKind::User, &[uid])?[..] else { return Err(Errno::EINVAL) };
    let [gid] = caller.known_to_us(view, IdKind::Group, &[gid])?[..] else { return Err(Errno::EINVAL) };
    let status = caller.status()?;
    // It may name whom it could become, in its own user namespace.
    let has = |capability| status.identity.capabilities & capability != 0;
    // A process knows itself by the number that it has in its own pid namespace; which number another has in ours, we
    // don't know.
    let is_itself = pid == status.inner_pid;
    let names = caller.identity(view)?.capabilities & CAP_SYS_ADMIN != 0 && status.inner_pid == status.pid;
    let may = (is_itself || names)
        && (status.uids.iter().take(3).any(|own| *own == uid) || has(CAP_SETUID))
        && (status.gids.iter().take(3).any(|own| *own == gid) || has(CAP_SETGID));
    if may { Ok([if is_itself { status.pid } else { pid }, uid, gid]) } else { Err(Errno::EPERM) }
}

/// A socket and the address for the event.
pub fn endpoint(held: &Held, address: Address) -> Endpoint {
    Endpoint { socket: held.socket, address }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(family: i32) -> Socket {
        Socket { family: family as u16, kind: libc::SOCK_DGRAM as u32, protocol: 17 }
    }

    fn v4(family: i32) -> Vec<u8> {
        [&(family as u16).to_ne_bytes()[..], &443_u16.to_be_bytes(), &[10, 0, 0, 1], &[0; 8]].concat()
    }

    #[test]
    fn unspec_on_an_ipv4_socket_is_the_ipv4_address_that_the_kernel_takes_it_for() {
        let ten = Address::Ipv4 { ip: Ipv4Addr::new(10, 0, 0, 1), port: 443 };
        assert_eq!(decode(&on(libc::AF_INET), &v4(libc::AF_INET)), ten);
        assert_eq!(decode(&on(libc::AF_INET), &v4(libc::AF_UNSPEC)), ten);
        assert_eq!(decode(&on(libc::AF_INET6), &v4(libc::AF_UNSPEC)), Address::Unspecified);
    }

    #[test]
    fn what_some_call_on_a_socket_takes_is_not_refused() {
        let refuses = |family: i32, kind: i32, protocol: i32, address: &[u8]| {
            let socket = Socket { family: family as u16, kind: kind as u32, protocol: protocol as u32 };
            Held { fd: std::fs::File::open("/dev/null").unwrap().into(), socket }.refuses(address)
        };
        let (stream, datagram) = (libc::SOCK_STREAM, libc::SOCK_DGRAM);
        for protocol in [libc::IPPROTO_TCP, libc::IPPROTO_UDP] {
            let kind = if protocol == libc::IPPROTO_TCP { stream } else { datagram };
            assert!(refuses(libc::AF_INET, kind, protocol, &v4(libc::AF_INET6)));
            assert!(!refuses(libc::AF_INET, kind, protocol, &v4(libc::AF_UNSPEC)));
            assert!(!refuses(libc::AF_INET6, kind, protocol, &v4(libc::AF_INET)));
            // Raw sockets are bound to the address in it whatever its family says.
            assert!(!refuses(libc::AF_INET, libc::SOCK_RAW, protocol, &v4(99)));
        }
        assert!(!refuses(libc::AF_INET, stream, libc::IPPROTO_SCTP, &v4(libc::AF_INET6)));
        assert!(!refuses(libc::AF_UNIX, stream, 0, &[1, 0, 0]));
        assert!(refuses(libc::AF_UNIX, stream, 0, &[1, 0]));
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address_in_it() {
        let mut bytes = [&(libc::AF_INET6 as u16).to_ne_bytes()[..], &80_u16.to_be_bytes(), &[0; 4]].concat();
        bytes.extend_from_slice(&Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets());
        bytes.extend_from_slice(&[0; 4]);
        let expected = Address::Ipv4 { ip: Ipv4Addr::LOCALHOST, port: 80 };
        assert_eq!(decode(&on(libc::AF_INET6), &bytes), expected);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_decode_to_some_address(family in 0..50, bytes: Vec<u8>) {
            decode(&on(family), &bytes);
            unix_path(&on(libc::AF_UNIX), &bytes);
        }
    }
}
