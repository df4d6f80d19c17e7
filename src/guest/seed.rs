//! What a guest's system finds on its seed disk when it boots, in the form of cloud-init's NoCloud
//! data source.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use vmm_core::virtio::block::{SEED_BYTES_MAX, SeedConfig};

use crate::cli::seed::is_host_name;
use crate::cli::spec::GuestSpec;
use crate::names::GuestName;

/// What tells a line with a public key from others.
const KEY_TYPES: [&str; 3] = ["ssh-", "ecdsa-", "sk-"];

/// The kinds of hashes that cloud-init tells from passwords (`cc_set_passwords`).
const HASHES: [&str; 5] = ["1", "2a", "2y", "5", "6"];

/// Returns the seed disk of the guest `name`, if it is to have one.
///
/// # Errors
/// If a file cannot be read, is too long, or is not what it should be.
pub(super) fn seed(spec: &GuestSpec, name: &GuestName) -> Result<Option<SeedConfig>> {
    if !spec.has_seed() {
        return Ok(None);
    }
    let files = spec.seed.as_ref();
    let user_data = files.and_then(|files| files.user_data.as_ref());
    let user_data = user_data.map(|file| read("user data", file)).transpose()?;
    let given = files.and_then(|files| files.meta_data.as_ref());
    let network = files.and_then(|files| files.network_config.as_ref());
    let mut documents = vec![("user-data", user_data.unwrap_or_default())];
    if let Some(file) = network {
        documents.push(("network-config", read("network configuration", file)?));
    }
    if let Some(file) = &spec.password_file {
        documents.push(("vendor-data", password(file)?));
    }
    let meta_data = match given {
        Some(file) => read("meta data", file)?,
        None => meta_data(spec, name)?,
    };
    documents.push(("meta-data", meta_data));
    let documents = documents.into_iter().map(|(name, content)| (name.to_owned(), content));
    Ok(Some(SeedConfig::new(documents)?))
}

/// Returns the meta data. cloud-init applies most of the documents once for each instance, and each
/// host name is another one. No digest of the documents: every user in the guest can read it.
fn meta_data(spec: &GuestSpec, name: &GuestName) -> Result<Vec<u8>> {
    let host_name = spec.hostname.as_deref().unwrap_or(name.as_str());
    ensure!(
        is_host_name(host_name),
        "the guest's name {name} can be no host name: give a `hostname`"
    );
    let mut keys = Vec::new();
    for file in &spec.ssh_key {
        keys.extend(public_keys(file)?);
    }
    let meta_data = json!({
        "instance-id": format!("lighter-{host_name}"),
        "local-hostname": host_name,
        "public-keys": keys,
    });
    // JSON is YAML as well.
    Ok(serde_json::to_vec_pretty(&meta_data)?)
}

/// Returns cloud-config that gives the image's ordinary user the password in `file`. It is for the
/// vendor data, over which user data take precedence.
fn password(file: &Path) -> Result<Vec<u8>> {
    let text = text("password", file)?;
    let password = text.trim_end_matches(['\r', '\n']);
    let is_one = !password.is_empty() && !password.contains(char::is_control);
    ensure!(is_one, "{} must have one line: the password, or its hash", file.display());
    // cloud-init would take other hashes for passwords, and these two words for an order.
    let mut fields = password.split('$').skip(1);
    let is_hash = fields.next().is_some_and(|kind| HASHES.contains(&kind)) && fields.count() >= 2;
    let is_known = is_hash || !password.starts_with('$');
    ensure!(
        is_known && !["R", "RANDOM"].contains(&password),
        "{}: cloud-init takes a password, or a hash as `mkpasswd -m sha-512` makes it",
        file.display()
    );
    let config = json!({ "password": password, "chpasswd": { "expire": false } });
    Ok(format!("#cloud-config\n{}\n", serde_json::to_string_pretty(&config)?).into_bytes())
}

/// Returns the public keys in `file`, one for each line.
fn public_keys(file: &Path) -> Result<Vec<String>> {
    let text = text("SSH key", file)?;
    let lines = text.lines().map(str::trim);
    let keys: Vec<_> = lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let is_key = |line: &&str| {
        KEY_TYPES.iter().any(|kind| line.starts_with(kind)) && !line.contains(char::is_control)
    };
    if keys.is_empty() || !keys.iter().all(is_key) {
        bail!("{} is not a file of public SSH keys, such as id_ed25519.pub", file.display());
    }
    Ok(keys.into_iter().map(str::to_owned).collect())
}

fn read(what: &str, file: &Path) -> Result<Vec<u8>> {
    regular_file::read(file, SEED_BYTES_MAX as u64)
        .with_context(|| format!("cannot read the {what} {}", file.display()))
}

fn text(what: &str, file: &Path) -> Result<String> {
    regular_file::read_text(file, SEED_BYTES_MAX as u64)
        .with_context(|| format!("cannot read the {what} {}", file.display()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::Value;

    use super::*;
    use crate::cli::{Cli, Verb};

    /// Returns the documents of a guest that runs with these options.
    fn of(name: &str, options: &[&str]) -> Result<Option<SeedConfig>> {
        let run = [&["lighter", "run", "--firmware", "/f"], options].concat();
        let Verb::Run(args) = Cli::try_parse_from(run).unwrap().verb else { panic!() };
        seed(&args.spec, &name.parse().unwrap())
    }

    fn file(content: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        file
    }

    #[test]
    fn what_is_typed_is_on_the_disk() {
        let (key, secret) = (file("# mine\nssh-ed25519 AAAA me\n"), file("$6$salt$hash\n"));
        let user = file("#cloud-config\npackages: [nginx]\n");
        let [key, secret, user] = [&key, &secret, &user].map(|file| file.path().to_str().unwrap());
        let options =
            ["--seed", user, "--ssh-key", key, "--hostname", "shop", "--password-file", secret];
        let seed = of("web", &options).unwrap().unwrap();
        assert_eq!(seed.document("user-data").unwrap(), b"#cloud-config\npackages: [nginx]\n");
        let json = |name, before| {
            let text = std::str::from_utf8(seed.document(name).unwrap()).unwrap();
            serde_json::from_str::<Value>(text.strip_prefix(before).unwrap()).unwrap()
        };
        let expected = json!({
            "instance-id": "lighter-shop",
            "local-hostname": "shop",
            "public-keys": ["ssh-ed25519 AAAA me"],
        });
        assert_eq!(json("meta-data", ""), expected);
        assert_eq!(json("vendor-data", "#cloud-config\n")["password"], "$6$salt$hash");
    }

    #[test]
    fn a_guest_without_options_for_it_has_no_seed() {
        assert!(of("web", &[]).unwrap().is_none());
        let named = of("web", &["--hostname", "shop"]).unwrap().unwrap();
        assert_eq!(named.document("user-data"), Some(&b""[..]));
        assert_eq!(named.document("vendor-data"), None);
    }

    #[test]
    fn what_is_no_key_or_password_is_refused() {
        for (option, content, words) in [
            ("--ssh-key", "-----BEGIN OPENSSH PRIVATE KEY-----\n", "public SSH keys"),
            ("--ssh-key", "# none\n", "public SSH keys"),
            ("--ssh-key", "ssh-ed25519 AA\u{7f}\n", "public SSH keys"),
            ("--password-file", "\n", "must have one line"),
            ("--password-file", "one\ntwo\n", "must have one line"),
            ("--password-file", "$y$j9T$salt$hash\n", "mkpasswd -m sha-512"),
            ("--password-file", "$6$hash\n", "mkpasswd -m sha-512"),
            ("--password-file", "RANDOM", "mkpasswd -m sha-512"),
        ] {
            let file = file(content);
            let refused = of("a", &[option, file.path().to_str().unwrap()]).unwrap_err();
            assert!(format!("{refused:#}").contains(words), "{content:?}: {refused:#}");
        }
        let user = file("");
        let missing = format!("{},meta-data=/nowhere", user.path().display());
        let refused = of("a", &["--seed", &missing]).unwrap_err();
        assert!(format!("{refused:#}").contains("/nowhere"), "{refused:#}");
    }
}
