//! Requests for certificates (PKCS #10, RFC 2986): a host makes one for a key that it keeps, and
//! the authority checks and signs it.

use rcgen::SubjectPublicKeyInfo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, pem};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::parse_x509_certificate;
use x509_parser::prelude::FromDer;

use super::authority::{Authority, check_names};
use super::bundle::{Bundle, BundleError};
use super::certificate::name;
use super::files::CertError;

/// Longest request that is read, in bytes: one with all names is much shorter.
pub const REQUEST_BYTES_MAX: u64 = 64 << 10;

/// Most names that a host can have in a request.
const NAMES_MAX: usize = 64;

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The request is longer than [`REQUEST_BYTES_MAX`].
    #[error("the request is longer than {REQUEST_BYTES_MAX} bytes")]
    TooLarge,
    /// The text holds no request in PEM.
    #[error("this is not a request for a certificate (CERTIFICATE REQUEST in PEM): {0}")]
    Pem(pem::Error),
    /// The request cannot be parsed.
    #[error("the request for a certificate is damaged: {0}")]
    Malformed(String),
    /// The request is not signed with its own key.
    #[error(
        "the signature of the request is wrong: it was changed after it was made; make it again with `lighter certs request`"
    )]
    Signature,
    /// The request names no host.
    #[error("the request has no names (subjectAltName): make one with `lighter certs request`")]
    NoNames,
    /// The request has more names than a host can have.
    #[error("the request has {0} names; a host can have {NAMES_MAX}")]
    TooManyNames(usize),
    /// The request asks for a name that is neither a DNS name nor an address of one host.
    #[error("the request asks for a name that no host can have: {0}")]
    Name(String),
    /// The request asks for rights that a host does not have.
    #[error("the request asks for more than a host's certificate may have: {0}")]
    Extension(String),
    /// The request is for a key of an unsupported type.
    #[error("no certificate can be made for a key of this type: {0}")]
    Key(String),
    /// The certificate cannot be made.
    #[error(transparent)]
    Certificate(#[from] CertError),
    /// The authority's own certificate cannot be handed out.
    #[error(transparent)]
    Bundle(#[from] BundleError),
}

/// A host's request for a certificate, with a valid signature.
#[derive(Debug)]
pub struct Request {
    names: Vec<String>,
    key: SubjectPublicKeyInfo,
    /// The public key as the request encodes it.
    key_der: Vec<u8>,
}

impl Request {
    /// Reads a request that another host sent, in PEM. Only its names and its public key are used;
    /// whatever else a host's certificate may not have is an error.
    ///
    /// # Errors
    /// [`RequestError`], except for its last two variants.
    pub fn from_pem(pem: &str) -> Result<Self, RequestError> {
        if pem.len() as u64 > REQUEST_BYTES_MAX {
            return Err(RequestError::TooLarge);
        }
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
            .map_err(RequestError::Pem)?;
        let malformed = |error: String| RequestError::Malformed(error);
        let (rest, request) = X509CertificationRequest::from_der(&der)
            .map_err(|error| malformed(error.to_string()))?;
        if !rest.is_empty() {
            return Err(malformed("there are bytes after its end".to_owned()));
        }
        request.verify_signature().map_err(|_| RequestError::Signature)?;
        let info = &request.certification_request_info;
        let key_der = info.subject_pki.raw.to_vec();
        let key = SubjectPublicKeyInfo::from_der(&key_der)
            .map_err(|error| RequestError::Key(error.to_string()))?;
        Ok(Self { names: names(&request)?, key, key_der })
    }

    /// Returns the DNS names and IP addresses that the host asks for.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }
}

/// Returns the names in the request's subjectAltName; no other extension may give rights.
fn names(request: &X509CertificationRequest<'_>) -> Result<Vec<String>, RequestError> {
    let mut names = Vec::new();
    for attribute in request.certification_request_info.iter_attributes() {
        let ParsedCriAttribute::ExtensionRequest(asked) = attribute.parsed_attribute() else {
            continue;
        };
        for extension in &asked.extensions {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(listed) => {
                    add_names(&mut names, &listed.general_names)?;
                }
                other => check_extension(other, &extension.oid.to_string())?,
            }
        }
    }
    if names.is_empty() {
        return Err(RequestError::NoNames);
    }
    Ok(names)
}

fn add_names(names: &mut Vec<String>, asked: &[GeneralName<'_>]) -> Result<(), RequestError> {
    if names.len() + asked.len() > NAMES_MAX {
        return Err(RequestError::TooManyNames(names.len() + asked.len()));
    }
    for asked in asked {
        let known = name(asked).filter(|name| check_names(std::slice::from_ref(name)).is_ok());
        let Some(known) = known else {
            return Err(RequestError::Name(described(asked)));
        };
        if !names.contains(&known) {
            names.push(known);
        }
    }
    Ok(())
}

/// Describes a name in a message: escaped, as a terminal might interpret it, and not at any length.
fn described(name: &GeneralName<'_>) -> String {
    let text = match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) | GeneralName::RFC822Name(name) => {
            (*name).to_owned()
        }
        GeneralName::IPAddress(_) => {
            self::name(name).unwrap_or_else(|| "an IP address of a wrong length".to_owned())
        }
        _ => "a name of another kind than DNS and IP".to_owned(),
    };
    text.chars().take(100).flat_map(char::escape_debug).collect()
}

/// Accepts an extension that asks for no more than each host's certificate has. None is copied.
fn check_extension(extension: &ParsedExtension<'_>, oid: &str) -> Result<(), RequestError> {
    let refused = |what: &str| Err(RequestError::Extension(format!("{what} ({oid})")));
    match extension {
        ParsedExtension::BasicConstraints(constraints) if constraints.ca => {
            refused("to be an authority, basicConstraints CA")
        }
        ParsedExtension::KeyUsage(usage) if usage.key_cert_sign() || usage.crl_sign() => {
            refused("to sign certificates or lists, keyUsage")
        }
        ParsedExtension::ExtendedKeyUsage(usage) => {
            let others = usage.any
                || usage.code_signing
                || usage.email_protection
                || usage.time_stamping
                || usage.ocsp_signing
                || !usage.other.is_empty();
            if others { refused("other uses than TLS, extendedKeyUsage") } else { Ok(()) }
        }
        ParsedExtension::BasicConstraints(_)
        | ParsedExtension::KeyUsage(_)
        | ParsedExtension::SubjectKeyIdentifier(_) => Ok(()),
        _ => refused("an extension"),
    }
}

impl Authority {
    /// Issues the certificate that a host has requested, with the same properties as those of
    /// [`Self::issue`].
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn sign(&self, request: &Request) -> Result<Bundle, RequestError> {
        let cert_pem = self.certify(&request.names, &request.key, |_| {})?;
        // Keys are encoded again on the way: the certificate must be for the requested one.
        if key_of(&cert_pem).as_ref() != Some(&request.key_der) {
            return Err(RequestError::Key("it would be encoded differently".to_owned()));
        }
        Ok(Bundle::new(&cert_pem, self.cert_pem())?)
    }
}

/// Returns the encoded public key of the certificate.
fn key_of(cert_pem: &str) -> Option<Vec<u8>> {
    let der = CertificateDer::from_pem_slice(cert_pem.as_bytes()).ok()?;
    let (_, certificate) = parse_x509_certificate(&der).ok()?;
    Some(certificate.public_key().raw.to_vec())
}

#[cfg(test)]
mod tests {
    use rcgen::string::Ia5String;
    use rcgen::{
        BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa,
        KeyPair, KeyUsagePurpose, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SanType,
    };

    use super::super::certificate::HostCertificate;
    use super::*;

    fn names() -> Vec<String> {
        ["host-b", "192.0.2.7", "2001:db8::7"].map(str::to_owned).to_vec()
    }

    fn made(change: impl FnOnce(&mut CertificateParams)) -> String {
        let mut params = CertificateParams::new(names()).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        params.serialize_request(&key).unwrap().pem().unwrap()
    }

    fn refusal(pem: &str) -> String {
        Request::from_pem(pem).unwrap_err().to_string()
    }

    #[test]
    fn a_request_becomes_a_certificate_like_any_other() {
        let authority = Authority::create().unwrap();
        let issued = authority.issue(&names()).unwrap();
        let own = HostCertificate::from_pem(&issued.cert_pem).unwrap();
        let usual = made(|params| {
            params.is_ca = IsCa::ExplicitNoCa;
            params.key_usages =
                vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.subject_alt_names.push(SanType::DnsName("host-b".try_into().unwrap()));
        });
        for pem in [made(|_| {}), usual] {
            let request = Request::from_pem(&pem).unwrap();
            assert_eq!(request.names(), names());
            let bundle = authority.sign(&request).unwrap();
            let signed = bundle.certificate();
            assert_eq!(signed.names, own.names);
            let validity = |it: &HostCertificate| it.valid_until_unix_s - it.valid_from_unix_s;
            assert_eq!(validity(signed), validity(&own));
            let parts = |pem: &str| {
                let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
                let (_, parsed) = parse_x509_certificate(&der).unwrap();
                // The key identifier is of the key, which differs.
                let extensions = parsed.extensions().iter().filter(|it| {
                    !matches!(it.parsed_extension(), ParsedExtension::SubjectKeyIdentifier(_))
                });
                let extensions = extensions.map(|it| (it.oid.to_string(), it.value.to_vec()));
                (parsed.subject().to_string(), extensions.collect::<Vec<_>>())
            };
            assert_eq!(parts(&bundle.to_pem()), parts(&issued.cert_pem));
        }
    }

    #[test]
    fn keys_of_other_types_are_signed_too() {
        let authority = Authority::create().unwrap();
        for algorithm in [&PKCS_ED25519, &PKCS_ECDSA_P384_SHA384] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let request = CertificateParams::new(names()).unwrap().serialize_request(&key).unwrap();
            let request = Request::from_pem(&request.pem().unwrap()).unwrap();
            authority.sign(&request).unwrap();
        }
    }

    #[test]
    fn a_changed_request_is_refused() {
        let good = made(|_| {});
        let der = CertificateSigningRequestDer::from_pem_slice(good.as_bytes()).unwrap();
        let at = der.windows(6).rposition(|bytes| bytes == b"host-b").unwrap();
        let mut changed = der.to_vec();
        changed[at + 5] = b'c';
        let error = refusal(&encode(&changed));
        assert!(error.contains("the signature of the request is wrong"), "{error}");

        let longer = [&der[..], b"\0"].concat();
        assert!(refusal(&encode(&longer)).contains("bytes after its end"));
        // Nothing that is used of a request can be changed, and no missing byte makes it panic.
        let wanted = Request::from_pem(&good).unwrap();
        for at in 0..der.len() {
            let mut flipped = der.to_vec();
            flipped[at] ^= 0x41;
            // Tags outside of the signed part may be read in more than one way.
            if let Ok(read) = Request::from_pem(&encode(&flipped)) {
                assert_eq!((read.names, read.key_der), (names(), wanted.key_der.clone()), "{at}");
            }
            assert!(Request::from_pem(&encode(&der[..at])).is_err(), "{at} bytes");
        }
    }

    /// Encodes `der` as a request in PEM.
    fn encode(der: &[u8]) -> String {
        const DIGITS: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut text = String::from("-----BEGIN CERTIFICATE REQUEST-----\n");
        for bytes in der.chunks(3) {
            let word = bytes.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte));
            let word = word << (8 * (3 - bytes.len()));
            for place in 0..4 {
                let digit = DIGITS[(word >> (18 - 6 * place)) as usize & 63];
                text.push(if place <= bytes.len() { char::from(digit) } else { '=' });
            }
        }
        text + "\n-----END CERTIFICATE REQUEST-----\n"
    }

    #[test]
    fn a_request_for_more_than_a_host_may_have_is_refused() {
        type Change = fn(&mut CertificateParams);
        let cases: [(&str, Change); 8] = [
            ("basicConstraints", |it| it.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            ("keyUsage", |it| it.key_usages = vec![KeyUsagePurpose::KeyCertSign]),
            ("keyUsage", |it| it.key_usages = vec![KeyUsagePurpose::CrlSign]),
            ("extendedKeyUsage", |it| {
                it.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
            }),
            ("extendedKeyUsage", |it| it.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any]),
            ("1.2.3.4", |it| {
                let content = vec![5, 0];
                it.custom_extensions =
                    vec![CustomExtension::from_oid_content(&[1, 2, 3, 4], content)];
            }),
            ("urn:uuid:", |it| {
                let guest = "urn:uuid:1b4e28ba-2fa1-11d2-883f-0016d3cca427".try_into().unwrap();
                it.subject_alt_names.push(SanType::URI(guest));
            }),
            ("\\u{1b}[2J", |it| {
                let name = Ia5String::try_from("\x1b[2J").unwrap();
                it.subject_alt_names.push(SanType::DnsName(name));
            }),
        ];
        for (word, change) in cases {
            let error = refusal(&made(change));
            assert!(error.contains(word) && !error.contains('\x1b'), "{word}: {error}");
        }
        let wild = refusal(&made(|it| {
            it.subject_alt_names = vec![SanType::DnsName("*.example.net".try_into().unwrap())];
        }));
        assert!(wild.contains("no host can have") && wild.contains("*.example.net"), "{wild}");
    }

    #[test]
    fn addresses_of_no_single_host_are_refused() {
        for shared in ["0.0.0.0", "ff02::1"] {
            let request = made(|it| {
                it.subject_alt_names.push(SanType::IpAddress(shared.parse().unwrap()));
            });
            let error = refusal(&request);
            assert!(error.contains("no host can have") && error.contains(shared), "{error}");
        }
    }

    #[test]
    fn the_number_of_names_and_the_size_are_bounded() {
        let none = refusal(&made(|it| it.subject_alt_names.clear()));
        assert!(none.contains("no names"), "{none}");
        let many = refusal(&made(|it| {
            it.subject_alt_names =
                (0..65).map(|at| SanType::IpAddress([10, 0, 0, at].into())).collect();
        }));
        assert!(many.contains("65 names"), "{many}");
        let long = made(|_| {}) + &" ".repeat(REQUEST_BYTES_MAX as usize);
        assert!(refusal(&long).contains("longer than"));
    }

    #[test]
    fn other_texts_are_no_requests() {
        let certificate = Authority::create().unwrap().issue(&names()).unwrap().cert_pem;
        for text in ["", "nothing", &certificate] {
            let error = refusal(text);
            assert!(error.contains("not a request for a certificate"), "{text}: {error}");
        }
    }
}
