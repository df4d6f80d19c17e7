//! Reads a policy file (TOML).

use toml::de::DeValue;

use super::preset::Preset;
use super::retired;
use super::rule::{DomainRule, GuestRule};
use super::sections::{HugePolicy, MergePolicy, Policy, PoolPolicy};
use crate::settings::{self, Fault, Fields, SettingsError};
use crate::units::{MIB, Size, parse_size, shortened};

/// The largest number of `[[guest]]` tables.
pub const RULES_MAX: usize = 1024;

impl Policy {
    /// Parses `text`, the content of the file that messages call `file_name`.
    ///
    /// Everything is optional: `preset`, `goal`, `actuators`, the tables `[host]`, `[balloon]`,
    /// `[pressure]`, `[merge]`, `[huge]`, `[pools]`, and `[[guest]]`. `[[schedule]]` is ignored
    /// here; `crate::schedule` reads it.
    ///
    /// # Errors
    /// If the text is not valid TOML, or has unknown or retired fields, values of the wrong type or
    /// out of range, or values that contradict each other. The error names the file, the line and
    /// the field.
    pub fn parse(text: &str, file_name: &str) -> Result<Self, SettingsError> {
        settings::read(text, file_name, read)
    }
}

fn read(mut fields: Fields<'_, '_>) -> Result<Policy, Fault> {
    let preset: Option<Preset> = fields.text("preset", str::parse)?;
    let mut policy = preset.unwrap_or_default().policy();
    if let Some(goal) = fields.text("goal", str::parse)? {
        policy.goal = goal;
    }
    if let Some(actuators) = fields.texts("actuators", str::parse)? {
        policy.actuators = actuators.into_iter().collect();
    }
    read_host(fields.section("host")?, &mut policy)?;
    read_balloon(fields.section("balloon")?, &mut policy)?;
    if fields.is_written("pain") {
        retired::refuse(&fields.section("pain")?, retired::PAIN)?;
        return Err(fields.fault("pain", "is called `pressure` now"));
    }
    read_pressure(fields.section("pressure")?, &mut policy)?;
    read_merge(fields.section("merge")?, &mut policy.merge)?;
    read_huge(fields.section("huge")?, &mut policy.huge)?;
    read_pools(fields.section("pools")?, &mut policy.pools)?;
    if fields.is_written("verify") {
        retired::refuse(&fields.section("verify")?, retired::VERIFY)?;
        return Err(fields.fault("verify", "is gone: what it decided is the same for everybody"));
    }
    for rule in fields.sections("guest", RULES_MAX)? {
        policy.guests.push(read_rule(rule)?);
    }
    fields.get("schedule");
    fields.finish()?;
    Ok(policy)
}

fn read_host(mut it: Fields<'_, '_>, policy: &mut Policy) -> Result<(), Fault> {
    retired::refuse(&it, retired::HOST)?;
    let host = &mut policy.host;
    it.share("amber-below", host.red_below..=0.9, &mut host.amber_below)?;
    it.finish()
}

fn read_balloon(mut it: Fields<'_, '_>, policy: &mut Policy) -> Result<(), Fault> {
    retired::refuse(&it, retired::BALLOON)?;
    let balloon = &mut policy.balloon;
    it.share("reserve", 0.0..=1.0, &mut balloon.reserve)?;
    it.size("reserve-min", &mut balloon.reserve_min_bytes)?;
    it.share("floor", 0.05..=1.0, &mut balloon.floor)?;
    it.share("step", 0.001..=0.5, &mut balloon.step)?;
    it.size("dead-band-min", &mut balloon.dead_band_min_bytes)?;
    it.time("timeout", 5..=3600, &mut balloon.timeout)?;
    it.finish()
}

fn read_pressure(mut it: Fields<'_, '_>, policy: &mut Policy) -> Result<(), Fault> {
    retired::refuse(&it, retired::PRESSURE)?;
    if let Some(rate) = it.number("major-faults", 0.0..=1e9)? {
        policy.pressure.major_faults_per_s = rate;
    }
    it.finish()
}

fn read_merge(mut it: Fields<'_, '_>, merge: &mut MergePolicy) -> Result<(), Fault> {
    retired::refuse(&it, retired::MERGE)?;
    if let Some(activity) = it.text("activity", str::parse)? {
        merge.activity = activity;
    }
    it.share("cpu", 0.001..=1.0, &mut merge.cpu)?;
    it.time("cpu-time", 1..=86_400, &mut merge.cpu_time)?;
    if let Some(pages) = it.whole("pages-per-second", 100..=10_000_000)? {
        merge.pages_per_s = u64::from(pages);
    }
    it.time("window", 10..=86_400, &mut merge.window)?;
    it.time("pause", 0..=7 * 86_400, &mut merge.pause)?;
    it.size("gain-min", &mut merge.gain_min_bytes)?;
    it.finish()
}

fn read_huge(mut it: Fields<'_, '_>, huge: &mut HugePolicy) -> Result<(), Fault> {
    retired::refuse(&it, retired::HUGE)?;
    it.share("present", 0.0..=1.0, &mut huge.present)?;
    it.finish()
}

fn read_pools(mut it: Fields<'_, '_>, pools: &mut PoolPolicy) -> Result<(), Fault> {
    it.size("free-min", &mut pools.free_min_bytes)?;
    pools.free_max_bytes = pools.free_max_bytes.max(pools.free_min_bytes);
    it.size("free-max", &mut pools.free_max_bytes)?;
    let bounds = [("free-min", pools.free_min_bytes), ("free-max", pools.free_max_bytes)];
    it.upwards(&bounds, Size::of)?;
    it.finish()
}

fn read_rule(mut it: Fields<'_, '_>) -> Result<GuestRule, Fault> {
    let rule = GuestRule {
        name: it.text("name", str::parse)?,
        labels: it.texts("label", str::parse)?.unwrap_or_default(),
        user: it.text("user", user)?,
        min_bytes: it.text("min", parse_size)?,
        max_bytes: it.text("max", limit)?,
        priority: it.whole("priority", 1..=10_000)?,
        merge_domain: read_domain(&mut it)?,
        take: it.flag("take")?,
        optimize: it.flag("optimize")?,
        actuators: it.texts("actuators", str::parse)?.map(|all| all.into_iter().collect()),
    };
    if let (Some(min), Some(max)) = (rule.min_bytes, rule.max_bytes) {
        it.upwards(&[("min", min), ("max", max)], Size::of)?;
    }
    it.finish()?;
    Ok(rule)
}

/// Parses the name or number of a user.
fn user(text: &str) -> Result<String, String> {
    match text.is_empty() || text.len() > 256 {
        true => {
            Err("the name or the number of a user, as in \"libvirt-qemu\" or \"64055\"".to_owned())
        }
        false => Ok(text.to_owned()),
    }
}

/// Parses a guest's maximum. Below 4 MiB no kernel runs; the unit is probably missing.
fn limit(text: &str) -> Result<u64, String> {
    let least = 4 * MIB;
    match parse_size(text)? {
        bytes if bytes >= least => Ok(bytes),
        _ => Err(format!("`{}` is less than {}", shortened(text), Size::of(least))),
    }
}

/// Reads a merge domain: a name, or `false` for none.
fn read_domain(it: &mut Fields<'_, '_>) -> Result<Option<DomainRule>, Fault> {
    let key = "merge-domain";
    match it.get(key).map(|value| value.get_ref()) {
        None => Ok(None),
        Some(DeValue::Boolean(false)) => Ok(Some(DomainRule::Own)),
        Some(DeValue::String(name)) if (1..=64).contains(&name.len()) => {
            Ok(Some(DomainRule::Named(name.to_string())))
        }
        Some(_) => Err(it.fault(key, "is a name of 1 to 64 bytes in quotes, or false for none")),
    }
}
