//! How many queues of a tap are open, in all processes: the kernel guards only taps with a single
//! queue against a second user. It is asked by netlink (rtnetlink(7)).

use std::io;
use std::os::fd::OwnedFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use nix::unistd::{read, write};

use crate::sys::net;

/// Types of messages (linux/netlink.h, linux/rtnetlink.h).
mod message {
    pub(super) const ERROR: u16 = 2;
    pub(super) const NEW_LINK: u16 = 16;
    pub(super) const GET_LINK: u16 = 18;
}

/// Types of attributes (linux/if_link.h, linux/if_tun.h).
mod attribute {
    pub(super) const LINK_INFO: u16 = 18;
    pub(super) const INFO_DATA: u16 = 2;
    pub(super) const NUM_QUEUES: u16 = 8;
    pub(super) const NUM_DISABLED_QUEUES: u16 = 9;
}

/// `NLM_F_REQUEST`: the flag of each request.
const REQUEST: u16 = 1;
/// Bits of an attribute's type (`NLA_TYPE_MASK`).
const TYPE_MASK: u16 = 0x3fff;
/// Bytes of `struct nlmsghdr`, and of `struct ifinfomsg` behind it.
const HEADER_BYTES: usize = 16;
const LINK_BYTES: usize = 16;
/// More than the kernel's answer takes.
const ANSWER_BYTES_MAX: usize = 32 << 10;

/// Returns how many queues of the tap `name` are open, whether they carry frames or not; `None` if
/// it is no tap for several queues.
///
/// # Errors
/// The error from the system.
pub(super) fn open_queues(control: &OwnedFd, name: &str) -> io::Result<Option<u32>> {
    let request = request(net::index(control, name)?);
    let (kind, protocol) = (SockType::Raw, SockProtocol::NetlinkRoute);
    let socket = socket(AddressFamily::Netlink, kind, SockFlag::SOCK_CLOEXEC, protocol)?;
    write(&socket, &request)?;
    let mut answer = vec![0; ANSWER_BYTES_MAX];
    let bytes = read(&socket, &mut answer)?;
    count(&answer[..bytes])
}

/// Asks for the interface with this index.
fn request(index: libc::c_int) -> Vec<u8> {
    let bytes = (HEADER_BYTES + LINK_BYTES) as u32;
    let mut request = bytes.to_ne_bytes().to_vec();
    request.extend(message::GET_LINK.to_ne_bytes());
    request.extend(REQUEST.to_ne_bytes());
    request.extend([0; 8]); // sequence number, sender
    request.extend([0; 4]); // any family, any type
    request.extend(index.to_ne_bytes());
    request.extend([0; 8]); // flags
    request
}

/// Reads the answer.
fn count(answer: &[u8]) -> io::Result<Option<u32>> {
    let kind = half(answer, 4);
    if kind == Some(message::ERROR) {
        let number = word(answer, HEADER_BYTES).unwrap_or_default() as i32;
        return Err(io::Error::from_raw_os_error(-number));
    }
    let counts = || {
        let link = answer.get(HEADER_BYTES + LINK_BYTES..)?;
        let tap = find(find(link, attribute::LINK_INFO)?, attribute::INFO_DATA)?;
        let number = |kind| word(find(tap, kind)?, 0);
        let [enabled, disabled] = [attribute::NUM_QUEUES, attribute::NUM_DISABLED_QUEUES];
        number(enabled)?.checked_add(number(disabled)?)
    };
    Ok(if kind == Some(message::NEW_LINK) { counts() } else { None })
}

/// Returns the value of the first attribute of this type.
fn find(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let bytes = usize::from(half(attributes, 0)?);
        let value = attributes.get(4..bytes)?;
        if half(attributes, 2)? & TYPE_MASK == kind {
            return Some(value);
        }
        attributes = attributes.get(bytes.next_multiple_of(4)..)?;
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn answer(kind: u16, rest: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes.extend(rest);
        bytes
    }

    fn link(attributes: &[u8]) -> Vec<u8> {
        answer(message::NEW_LINK, &[&[0; LINK_BYTES], attributes].concat())
    }

    #[test]
    fn queues_that_carry_frames_and_others_count() {
        let number = |kind, number: u32| attribute(kind, &number.to_ne_bytes());
        let data = [number(7, 1), number(8, 3), number(9, 5)].concat();
        let kind = attribute(1, b"tun\0");
        let info = [kind, attribute(attribute::INFO_DATA, &data)].concat();
        let info = attribute(attribute::LINK_INFO | 0x8000, &info);
        let whole = link(&[attribute(3, b"tap-web\0"), info].concat());
        assert_eq!(count(&whole).unwrap(), Some(8));
        for cut in 0..whole.len() {
            assert_eq!(count(&whole[..cut]).unwrap(), None, "cut at {cut}");
        }
    }

    #[test]
    fn other_answers_have_none() {
        let none = answer(message::ERROR, &(-libc::ENODEV).to_ne_bytes());
        assert_eq!(count(&none).unwrap_err().raw_os_error(), Some(libc::ENODEV));
        for attributes in [&[][..], &[0; 4], &[3, 0, 18, 0], &[255; 64]] {
            assert_eq!(count(&link(attributes)).unwrap(), None, "{attributes:?}");
        }
        let control = net::control().unwrap();
        assert_eq!(open_queues(&control, "lo").unwrap(), None);
        assert!(open_queues(&control, "none-such").is_err());
    }
}
