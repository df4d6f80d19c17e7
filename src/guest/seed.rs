//! What a guest's system finds on its seed disk when it boots, in the form of cloud-init's NoCloud
//! data source.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use vmm_core::virtio::block::{SEED_BYTES_MAX, SeedConfig};
use xxhash_rust::xxh3::xxh3_64;

use crate::cli::spec::GuestSpec;
use crate::names::GuestName;

/// What tells a line with a public key from others.
const KEY_TYPES: [&str; 3] = ["ssh-", "ecdsa-", "sk-"];

/// Returns the seed disk of the guest `name`, if it is to have one.
///
/// # Errors
/// If a file cannot be read, is too long, or is not what it should be.
pub(super) fn seed(spec: &GuestSpec, name: &GuestName) -> Result<Option<SeedConfig>> {
    if !spec.has_seed() {
        return Ok(None);
    }
    let files = spec.seed.as_ref();
    let user_data = files.map(|files| read("user data", &files.user_data)).transpose()?;
    let meta_data = files.and_then(|files| files.meta_data.as_ref());
    let network = files.and_then(|files| files.network_config.as_ref());
    let mut documents = vec![("user-data", user_data.unwrap_or_default())];
    if let Some(file) = network {
        documents.push(("network-config", read("network configuration", file)?));
    }
    if let Some(file) = &spec.password_file {
        documents.push(("vendor-data", password(file)?));
    }
    let meta_data = match meta_data {
        Some(file) => read("meta data", file)?,
        None => known_of(spec, name, &documents)?,
    };
    documents.push(("meta-data", meta_data));
    let documents = documents.into_iter().map(|(name, content)| (name.to_owned(), content));
    Ok(Some(SeedConfig::new(documents)?))
}

/// Returns the meta data. cloud-init configures each instance once: another host name, or other
/// documents, make another instance.
fn known_of(spec: &GuestSpec, name: &GuestName, documents: &[(&str, Vec<u8>)]) -> Result<Vec<u8>> {
    let hostname = spec.hostname.as_deref().unwrap_or(name.as_str());
    let mut keys = Vec::new();
    for file in &spec.ssh_key {
        keys.extend(public_keys(file)?);
    }
    let mut known = json!({ "local-hostname": hostname, "public-keys": keys });
    let all = serde_json::to_vec(&(&known, documents))?;
    known["instance-id"] = Value::from(format!("lighter-{:016x}", xxh3_64(&all)));
    // JSON is YAML as well.
    Ok(serde_json::to_vec_pretty(&known)?)
}

/// Returns the cloud-config by which the image's ordinary user has the password in `file`. As
/// vendor data, it gives way to what the user data say.
fn password(file: &Path) -> Result<Vec<u8>> {
    let text = text("password", file)?;
    let password = text.trim_end_matches(['\r', '\n']);
    let is_one = !password.is_empty() && !password.contains(char::is_control);
    ensure!(is_one, "{} must have one line: the password, or its hash", file.display());
    let config = json!({ "password": password, "chpasswd": { "expire": false } });
    Ok(format!("#cloud-config\n{}\n", serde_json::to_string_pretty(&config)?).into_bytes())
}

/// Returns the public keys in `file`, one for each line.
fn public_keys(file: &Path) -> Result<Vec<String>> {
    let text = text("SSH key", file)?;
    let lines = text.lines().map(str::trim);
    let keys: Vec<_> = lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let is_key = |line: &&str| KEY_TYPES.iter().any(|kind| line.starts_with(kind));
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
        let (key, secret) = (file("# mine\nssh-ed25519 AAAA me\n"), file("$6$hash\n"));
        let user = file("#cloud-config\npackages: [nginx]\n");
        let [key, secret, user] = [&key, &secret, &user].map(|file| file.path().to_str().unwrap());
        let options =
            ["--seed", user, "--ssh-key", key, "--hostname", "shop", "--password-file", secret];
        let seed = of("web", &options).unwrap().unwrap();
        assert_eq!(seed.document("user-data").unwrap(), b"#cloud-config\npackages: [nginx]\n");
        let known: Value = serde_json::from_slice(seed.document("meta-data").unwrap()).unwrap();
        assert_eq!(known["local-hostname"], "shop");
        assert_eq!(known["public-keys"], json!(["ssh-ed25519 AAAA me"]));
        let vendor = std::str::from_utf8(seed.document("vendor-data").unwrap()).unwrap();
        let config = vendor.strip_prefix("#cloud-config\n").unwrap();
        assert_eq!(serde_json::from_str::<Value>(config).unwrap()["password"], "$6$hash");
    }

    #[test]
    fn an_instance_is_another_one_when_its_name_or_its_documents_are() {
        let (one, two) = (file("#cloud-config\n"), file("#cloud-config\na: 1\n"));
        let [one, two] = [&one, &two].map(|file| file.path().to_str().unwrap());
        let instance = |name, user| {
            let seed = of(name, &["--seed", user]).unwrap().unwrap();
            let known: Value = serde_json::from_slice(seed.document("meta-data").unwrap()).unwrap();
            known["instance-id"].to_string()
        };
        assert_eq!(instance("a", one), instance("a", one));
        assert_ne!(instance("a", one), instance("b", one));
        assert_ne!(instance("a", one), instance("a", two));
        assert!(of("a", &[]).unwrap().is_none());
    }

    #[test]
    fn what_is_no_key_or_password_is_refused() {
        let private = file("-----BEGIN OPENSSH PRIVATE KEY-----\n");
        for (option, content) in [
            ("--ssh-key", "-----BEGIN OPENSSH PRIVATE KEY-----\n"),
            ("--ssh-key", "# none\n"),
            ("--password-file", "\n"),
            ("--password-file", "one\ntwo\n"),
        ] {
            let file = file(content);
            let refused = of("a", &[option, file.path().to_str().unwrap()]).unwrap_err();
            assert!(
                format!("{refused:#}").contains("must have one line")
                    || format!("{refused:#}").contains("public SSH keys"),
                "{refused:#}"
            );
        }
        let user_data = private.path().to_str().unwrap();
        let meta = format!("{user_data},meta-data=/nowhere");
        let refused = of("a", &["--seed", &meta]).unwrap_err();
        assert!(format!("{refused:#}").contains("/nowhere"), "{refused:#}");
    }
}
