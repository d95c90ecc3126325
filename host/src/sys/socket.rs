//! Socket calls on addresses and control messages that stay bytes: they are the caller's, and what we can't decode must
//! still reach the kernel as it was.
//!
//! connect(2) and sendmsg(2) by syscall(2): to libc they are points of cancellation (pthreads(7)), which costs 30 ns each.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// connect(2).
///
/// # Errors
/// The kernel's.
pub fn connect(socket: impl AsFd, address: &[u8]) -> io::Result<i64> {
    // SAFETY: pointer and length describe `address`.
    number(unsafe { libc::syscall(libc::SYS_connect, socket.as_fd().as_raw_fd(), address.as_ptr(), address.len()) })
}

/// bind(2).
///
/// # Errors
/// The kernel's.
pub fn bind(socket: impl AsFd, address: &[u8]) -> io::Result<i64> {
    // SAFETY: pointer and length describe `address`.
    number(unsafe {
        libc::bind(socket.as_fd().as_raw_fd(), address.as_ptr().cast(), address.len() as libc::socklen_t) as i64
    })
}

/// listen(2).
///
/// # Errors
/// The kernel's.
pub fn listen(socket: impl AsFd, backlog: i32) -> io::Result<i64> {
    // SAFETY: takes numbers only.
    number(unsafe { libc::listen(socket.as_fd().as_raw_fd(), backlog) as i64 })
}

/// shutdown(2), in both directions: also ends listening.
pub fn stop(socket: impl AsFd) {
    // SAFETY: takes numbers only.
    unsafe { libc::shutdown(socket.as_fd().as_raw_fd(), libc::SHUT_RDWR) };
}

/// sendmsg(2) of one buffer, with the address (if any) and control messages (if any) given as bytes.
///
/// # Errors
/// The kernel's. Never raises SIGPIPE if `flags` has `MSG_NOSIGNAL`.
pub fn send(socket: impl AsFd, data: &[u8], address: Option<&[u8]>, control: &mut [u8], flags: i32) -> io::Result<i64> {
    let mut part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    // SAFETY: all-zero bytes are a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    if let Some(address) = address {
        message.msg_name = address.as_ptr().cast_mut().cast();
        message.msg_namelen = address.len() as libc::socklen_t;
    }
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if !control.is_empty() {
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = control.len() as _;
    }
    // SAFETY: every pointer in `message` describes a live buffer of the length beside it; sending only reads them.
    number(unsafe { libc::syscall(libc::SYS_sendmsg, socket.as_fd().as_raw_fd(), &raw const message, flags) })
}

/// accept4(2), close-on-exec on our side, and the peer's address as bytes.
///
/// # Errors
/// The kernel's.
pub fn accept(socket: impl AsFd, flags: i32) -> io::Result<(OwnedFd, Vec<u8>)> {
    let mut address = [0_u8; 128];
    let mut length = address.len() as libc::socklen_t;
    // SAFETY: pointer and length describe `address`; `length` is written.
    let fd = unsafe {
        libc::accept4(
            socket.as_fd().as_raw_fd(),
            address.as_mut_ptr().cast(),
            &raw mut length,
            flags | libc::SOCK_CLOEXEC,
        )
    };
    number(i64::from(fd))?;
    // SAFETY: the kernel has just made this descriptor for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok((fd, address[..(length as usize).min(address.len())].to_vec()))
}

/// getsockname(2), as bytes.
///
/// # Errors
/// The kernel's.
pub fn local_address(socket: impl AsFd) -> io::Result<Vec<u8>> {
    let mut address = [0_u8; 128];
    let mut length = address.len() as libc::socklen_t;
    // SAFETY: pointer and length describe `address`; `length` is written.
    number(unsafe {
        libc::getsockname(socket.as_fd().as_raw_fd(), address.as_mut_ptr().cast(), &raw mut length) as i64
    })?;
    Ok(address[..(length as usize).min(address.len())].to_vec())
}

/// getpeername(2), as bytes.
///
/// # Errors
/// `ENOTCONN`, and the kernel's others.
pub fn peer_address(socket: impl AsFd) -> io::Result<Vec<u8>> {
    let mut address = [0_u8; 128];
    let mut length = address.len() as libc::socklen_t;
    // SAFETY: pointer and length describe `address`; `length` is written.
    number(unsafe {
        libc::getpeername(socket.as_fd().as_raw_fd(), address.as_mut_ptr().cast(), &raw mut length) as i64
    })?;
    Ok(address[..(length as usize).min(address.len())].to_vec())
}

/// `SO_COOKIE`: a number that no other socket of this machine has or will have (Linux 5.3; before, of its network namespace).
///
/// # Errors
/// `ENOTSOCK` for anything that isn't a socket.
pub fn cookie(socket: impl AsFd) -> io::Result<u64> {
    let mut value = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: pointer and length describe `value`.
    number(unsafe {
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_COOKIE, (&raw mut value).cast(), &raw mut length) as i64
    })?;
    Ok(value)
}

/// A `SOL_SOCKET` option that is an int.
///
/// # Errors
/// `ENOTSOCK` for anything that isn't a socket.
pub fn option(socket: impl AsFd, name: i32) -> io::Result<i32> {
    let mut value = 0_i32;
    let mut length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: pointer and length describe `value`.
    number(unsafe {
        libc::getsockopt(socket.as_fd().as_raw_fd(), libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut length)
            as i64
    })?;
    Ok(value)
}

/// `SO_PEERCRED`: process, user and group.
///
/// # Errors
/// The kernel's.
pub fn peer_credentials(socket: impl AsFd) -> io::Result<[u32; 3]> {
    let mut ids = [0_u32; 3];
    let mut length = size_of_val(&ids) as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: pointer and length describe `ids`, which has the layout of `ucred`.
    number(unsafe {
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, ids.as_mut_ptr().cast(), &raw mut length) as i64
    })?;
    Ok(ids)
}

/// `SO_SNDTIMEO` or `SO_RCVTIMEO` in microseconds; 0 for none.
///
/// # Errors
/// `ENOTSOCK`.
pub fn timeout_us(socket: impl AsFd, name: i32) -> io::Result<i64> {
    let mut value = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let mut length = size_of::<libc::timeval>() as libc::socklen_t;
    // SAFETY: pointer and length describe `value`.
    number(unsafe {
        libc::getsockopt(socket.as_fd().as_raw_fd(), libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut length)
            as i64
    })?;
    Ok(value.tv_sec * 1_000_000 + value.tv_usec)
}

fn number(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
