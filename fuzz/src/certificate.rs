//! Texts that a host gets for its certificate: a request that its authority signs, and the signed
//! certificate that it installs.

use std::sync::OnceLock;

use arbitrary::Arbitrary;
use migrate::quic::{Authority, Bundle, PendingKey, Request};
use tempfile::TempDir;

/// The digits of a section in PEM.
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// A text in place of a request or a certificate.
#[derive(Debug, Arbitrary)]
pub enum Text {
    /// Arbitrary bytes.
    AsIs(Vec<u8>),
    /// A valid request, with changes.
    Request(Changes),
    /// A valid certificate with its authority's, with changes.
    Bundle(Changes),
    /// A request for these names.
    Names(Vec<String>),
}

/// Changes to a valid text. Its digits become other digits, so that its content is parsed.
#[derive(Debug, Arbitrary)]
pub struct Changes {
    /// Offsets, each with a number that is added to the digit there.
    digits: Vec<(u16, u8)>,
    /// Text that is inserted at an offset.
    inserted: Option<(u16, String)>,
    rest: Vec<u8>,
}

impl Changes {
    fn of(&self, good: &str) -> String {
        let mut bytes = good.as_bytes().to_vec();
        for (at, add) in &self.digits {
            let at = usize::from(*at) % bytes.len();
            let digit = DIGITS.iter().position(|digit| *digit == bytes[at]);
            if let Some(digit) = digit {
                bytes[at] = DIGITS[(digit + usize::from(*add)) % DIGITS.len()];
            }
        }
        if let Some((at, text)) = &self.inserted {
            let at = usize::from(*at) % bytes.len();
            drop(bytes.splice(at..at, text.bytes()));
        }
        bytes.extend(&self.rest);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// An authority, and a host's folder with the key of its request.
struct Fleet {
    authority: Authority,
    host: TempDir,
    request: String,
    bundle: String,
}

fn fleet() -> &'static Fleet {
    static FLEET: OnceLock<Fleet> = OnceLock::new();
    FLEET.get_or_init(|| {
        let authority = Authority::create().unwrap_or_else(|error| panic!("{error}"));
        let host = tempfile::tempdir().unwrap_or_else(|error| panic!("no folder: {error}"));
        let key = PendingKey::open(host.path()).unwrap_or_else(|error| panic!("{error}"));
        let names = ["host-b", "192.0.2.7"].map(str::to_owned);
        let request = key.request(&names).unwrap_or_else(|error| panic!("{error}"));
        let read = Request::from_pem(&request).unwrap_or_else(|error| panic!("{error}"));
        let bundle = authority.sign(&read).unwrap_or_else(|error| panic!("{error}"));
        Fleet { authority, host, request, bundle: bundle.to_pem() }
    })
}

/// Reads a text as a request, which is signed, and as a certificate; returns how often it is valid.
///
/// # Panics
/// If a valid one is not read again as it was.
pub fn read(text: &Text) -> u64 {
    let fleet = fleet();
    let text = match text {
        Text::AsIs(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Text::Request(changes) => changes.of(&fleet.request),
        Text::Bundle(changes) => changes.of(&fleet.bundle),
        Text::Names(names) => {
            let key = PendingKey::open(fleet.host.path()).unwrap_or_else(|error| panic!("{error}"));
            key.request(names).unwrap_or_default()
        }
    };
    let mut valid = 0;
    if let Ok(request) = Request::from_pem(&text)
        && let Ok(bundle) = fleet.authority.sign(&request)
    {
        valid += 1;
        assert_eq!(bundle.certificate().names, request.names());
        assert!(Bundle::from_pem(&bundle.to_pem()).is_ok_and(|read| read == bundle));
    }
    if let Ok(bundle) = Bundle::from_pem(&text) {
        valid += 1;
        let _damaged_authority = (bundle.authorities(), bundle.expiry());
        assert!(Bundle::from_pem(&bundle.to_pem()).is_ok_and(|read| read == bundle));
    }
    valid
}
