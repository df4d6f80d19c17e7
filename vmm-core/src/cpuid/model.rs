//! CPU models: which features of its host's processor a guest sees, so that different hosts can
//! exchange guests.
//!
//! The levels are those of the x86-64 psABI (section "Micro-Architecture Levels"), under the names
//! that GCC, Linux distributions and QEMU use. A level *needs* the instructions of the psABI's
//! level, and *keeps* only those other features that every processor of that level has and a kernel
//! uses. Everything else is masked, on every leaf (see [`leaves`]): so a guest that was started on
//! the newer of two hosts can also run on the older one.

mod leaves;

use serde::{Deserialize, Serialize};

use super::feature::{self, Bit, Register};
use super::msr::{self, Extent, MsrValue};
use super::{CpuidEntry, has, word};

/// The features of nested virtualization on Intel's and AMD's processors.
const NESTED: [&str; 2] = ["vmx", "svm"];

/// The leaf of SVM's features (AMD APM volume 3, Fn8000_000A).
const SVM_LEAF: u32 = 0x8000_000a;

/// Longest name of a model, in bytes.
const NAME_BYTES_MAX: usize = 63;

/// Features that every x86-64 processor has and that KVM provides on all of them.
const EVERYWHERE: &[&str] = &[
    "fpu",
    "vme",
    "de",
    "pse",
    "tsc",
    "msr",
    "pae",
    "mce",
    "cx8",
    "apic",
    "sep",
    "mtrr",
    "pge",
    "mca",
    "cmov",
    "pat",
    "pse36",
    "clflush",
    "mmx",
    "fxsr",
    "sse",
    "sse2",
    "syscall",
    "nx",
    "lm",
    "rdtscp",
    "constant_tsc",
    "x2apic",
    "tsc_deadline_timer",
    "tsc_adjust",
    "hypervisor",
    "arat",
];

/// A level of the psABI.
#[derive(Debug)]
struct Level {
    name: &'static str,
    about: &'static str,
    /// Features that the level adds to those of the level before it.
    needs: &'static [&'static str],
    /// Further features that its processors have and the level shows.
    keeps: &'static [&'static str],
    /// Extended-state components that the level adds: bits of XCR0.
    xcr0: u32,
}

const LEVELS: &[Level] = &[
    Level {
        name: "x86-64-v1",
        about: "SSE2: any x86-64 processor",
        needs: &["cmov", "cx8", "fpu", "fxsr", "mmx", "sse", "sse2", "syscall"],
        keeps: &[],
        xcr0: 0b11,
    },
    Level {
        name: "x86-64-v2",
        about: "SSE4.2 and POPCNT: Intel since 2008, AMD since 2011",
        needs: &["cx16", "lahf_lm", "popcnt", "sse3", "sse4_1", "sse4_2", "ssse3"],
        keeps: &[],
        xcr0: 0,
    },
    Level {
        name: "x86-64-v3",
        about: "AVX2, BMI and FMA: Intel since 2013, AMD since 2015",
        needs: &["abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"],
        keeps: &["aes", "fsgsbase", "pclmulqdq", "rdrand", "smep", "xsaveopt"],
        xcr0: 0b100,
    },
    Level {
        name: "x86-64-v4",
        about: "AVX-512: Intel servers since 2017, AMD since 2022",
        needs: &["avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"],
        keeps: &[
            "adx",
            "clflushopt",
            "clwb",
            "erms",
            "invpcid",
            "pcid",
            "pdpe1gb",
            "rdseed",
            "smap",
            "xgetbv1",
            "xsavec",
        ],
        xcr0: 0b1110_0000,
    },
];

/// Why a CPU model cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// The host lacks features that the model needs.
    #[error("the host's processor cannot be a {model}: it lacks {}; `lighter cpu-models` lists what it can be", .missing.join(", "))]
    Needs {
        /// Name of the model.
        model: String,
        /// Names of the missing features.
        missing: Vec<String>,
    },
    /// The model contradicts itself, or has an invalid name or an unknown feature.
    #[error("the CPU model is not possible: {0}")]
    Impossible(String),
}

/// Which features of its host's processor a guest sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuModel {
    name: String,
    /// Index of the level in the list; `None` for all features of the host.
    level: Option<u8>,
    add: Vec<String>,
    remove: Vec<String>,
    nested: Nested,
}

/// Whether a guest sees that it can run guests itself: VMX or SVM. The state of nested guests is
/// not saved, so the feature is hidden by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Nested {
    /// Hidden from the guest.
    #[default]
    Off,
    /// Visible to the guest, which can be saved and moved as long as it does not use the feature.
    On,
}

impl Default for CpuModel {
    /// Returns the model `host`: all features of the host.
    fn default() -> Self {
        Self {
            name: "host".to_owned(),
            level: None,
            add: Vec::new(),
            remove: Vec::new(),
            nested: Nested::Off,
        }
    }
}

impl CpuModel {
    /// Returns the model of this name: `host` or a level.
    pub fn named(name: &str) -> Option<Self> {
        Self::all().find(|model| model.name == name)
    }

    /// Returns every model with a predefined name.
    pub fn all() -> impl Iterator<Item = Self> {
        let levels = (0..).zip(LEVELS).map(|(index, level)| Self {
            name: level.name.to_owned(),
            level: Some(index),
            ..Self::default()
        });
        std::iter::once(Self::default()).chain(levels)
    }

    /// Returns this model with features added and removed, under the name `name`.
    ///
    /// # Errors
    /// [`ModelError::Impossible`] for an invalid name, an unknown feature, a feature of nested
    /// virtualization, or a feature that is both added and removed.
    pub fn derive(
        &self,
        name: &str,
        add: &[String],
        remove: &[String],
    ) -> Result<Self, ModelError> {
        check_name(name)?;
        let is_unknown =
            |name: &&String| feature::by_name(name).is_none() && msr::announced_by(name).is_none();
        if let Some(unknown) = add.iter().chain(remove).find(is_unknown) {
            let what = format!(
                "there is no CPU feature `{unknown}`: use names of /proc/cpuinfo, or of bits of IA32_ARCH_CAPABILITIES"
            );
            return Err(ModelError::Impossible(what));
        }
        let mut changed = add.iter().chain(remove);
        if let Some(name) = changed.find(|name| NESTED.contains(&name.as_str())) {
            let what = format!("`{name}` is not changed by name: use `--nested on` or `off`");
            return Err(ModelError::Impossible(what));
        }
        let implied = add.iter().filter_map(|name| msr::announced_by(name));
        let mut wanted = add.iter().map(String::as_str).chain(implied);
        if let Some(both) = wanted.find(|name| remove.iter().any(|removed| removed == name)) {
            return Err(ModelError::Impossible(format!("`{both}` is both added and removed")));
        }
        let (name, add, remove) = (name.to_owned(), add.to_vec(), remove.to_vec());
        Ok(Self { name, level: self.level, add, remove, nested: self.nested })
    }

    /// Returns this model with or without nested virtualization.
    pub fn with_nested(self, nested: Nested) -> Self {
        Self { nested, ..self }
    }

    /// Name of the model.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Describes the model, for people.
    pub fn about(&self) -> &'static str {
        self.level().map_or("all that the host's processor and KVM have", |level| level.about)
    }

    fn level(&self) -> Option<&'static Level> {
        self.level.and_then(|level| LEVELS.get(usize::from(level)))
    }

    fn levels(&self) -> &'static [Level] {
        self.level.map_or(&[], |level| &LEVELS[..=usize::from(level).min(LEVELS.len() - 1)])
    }

    /// Returns the names of the features that the model needs and `host` lacks.
    pub(crate) fn missing(&self, host: &[CpuidEntry]) -> Vec<String> {
        let of_levels = self.levels().iter().flat_map(|level| level.needs);
        let needs = of_levels.copied().chain(self.added());
        let lacks = |name: &&str| feature::by_name(name).is_none_or(|bit| !has(host, bit));
        let mut missing: Vec<_> = needs.filter(lacks).map(str::to_owned).collect();
        if self.nested == Nested::On && nested_bits().all(|bit| !has(host, bit)) {
            missing.push(format!("nested virtualization ({})", NESTED.join(" or ")));
        }
        missing
    }

    /// Returns the part of `host`'s table that a guest of this model sees.
    ///
    /// # Errors
    /// [`ModelError::Needs`] if the host lacks a feature that the model needs.
    pub(crate) fn apply(&self, host: &[CpuidEntry]) -> Result<Vec<CpuidEntry>, ModelError> {
        let missing = self.missing(host);
        if !missing.is_empty() {
            return Err(ModelError::Needs { model: self.name.clone(), missing });
        }
        let mut entries = host.to_vec();
        if self.level.is_some() {
            leaves::mask(&mut entries, &self.kept(), self.xcr0());
        }
        entries.retain(|entry| entry.function != SVM_LEAF);
        match self.nested {
            Nested::Off => nested_bits().for_each(|bit| clear(&mut entries, bit)),
            Nested::On => {
                entries.extend(host.iter().filter(|entry| entry.function == SVM_LEAF));
            }
        }
        for bit in self.remove.iter().filter_map(|name| feature::by_name(name)) {
            clear(&mut entries, bit);
        }
        fit_state(&mut entries);
        Ok(entries)
    }

    /// Returns the feature registers of `host` as a guest of this model sees them, if its table is
    /// `cpuid`.
    ///
    /// # Errors
    /// [`ModelError::Needs`] if the host lacks a bit that the model adds.
    pub(crate) fn apply_msrs(
        &self,
        host: &[MsrValue],
        cpuid: &[CpuidEntry],
    ) -> Result<Vec<MsrValue>, ModelError> {
        let missing = msr::missing_names(&self.add, host);
        if !missing.is_empty() {
            return Err(ModelError::Needs { model: self.name.clone(), missing });
        }
        let extent = self.level.map_or(Extent::Host, |_| Extent::Level);
        Ok(msr::shown(host, cpuid, extent, (&self.add, &self.remove)))
    }

    /// Returns the added CPUID features, including those that announce a register with an added
    /// bit.
    fn added(&self) -> impl Iterator<Item = &str> {
        self.add.iter().map(|name| msr::announced_by(name).unwrap_or(name))
    }

    fn kept(&self) -> Vec<Bit> {
        let of_levels =
            self.levels().iter().flat_map(|level| level.needs.iter().chain(level.keeps));
        let names = EVERYWHERE.iter().chain(of_levels).copied();
        let named = names.chain(self.added()).filter_map(feature::by_name);
        named.chain(nested_bits().filter(|_| self.nested == Nested::On)).collect()
    }

    fn xcr0(&self) -> u32 {
        self.levels().iter().fold(0, |bits, level| bits | level.xcr0)
    }
}

/// Checks that `name`, which may come from anywhere, is safe to print.
pub(crate) fn check_name(name: &str) -> Result<(), ModelError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_plain) {
        let what =
            format!("a model is named with 1 to {NAME_BYTES_MAX} letters, digits, `-`, `_` or `.`");
        return Err(ModelError::Impossible(what));
    }
    Ok(())
}

/// Returns the features of nested virtualization.
fn nested_bits() -> impl Iterator<Item = Bit> {
    NESTED.iter().filter_map(|name| feature::by_name(name))
}

fn clear(entries: &mut [CpuidEntry], (leaf, subleaf, register, bit): Bit) {
    let places =
        entries.iter_mut().filter(|entry| (entry.function, entry.index) == (leaf, subleaf));
    places.for_each(|entry| *entry.register_mut(register) &= !(1 << bit));
}

/// Removes extended state whose instructions the table lacks, and updates the sizes of what
/// remains.
fn fit_state(entries: &mut Vec<CpuidEntry>) {
    const LEGACY_BYTES: u32 = 576;
    let named = |name| feature::by_name(name).is_some_and(|bit| has(entries, bit));
    let absent = [
        ("avx", 0b100),
        ("avx512f", 0b1110_0000),
        ("mpx", 0b1_1000),
        ("pku", 1 << 9),
        ("amx_tile", 0b11 << 17),
    ];
    let gone =
        absent.into_iter().filter(|(name, _)| !named(name)).fold(0, |bits, (_, bit)| bits | bit);
    let components = word(entries, 0xd, 0, Register::Eax) & !gone;
    let of_supervisor = word(entries, 0xd, 1, Register::Ecx);
    entries.retain(|entry| {
        let is_component = entry.function == 0xd && entry.index >= 2;
        // Bit 0 of ECX: a supervisor component, enabled in IA32_XSS and not in XCR0.
        let enabled = if entry.ecx & 1 == 1 { of_supervisor } else { components };
        !is_component || entry.index < 32 && enabled >> entry.index & 1 == 1
    });
    let bytes = entries
        .iter()
        .filter(|entry| entry.function == 0xd && entry.index >= 2 && entry.ecx & 1 == 0)
        .fold(LEGACY_BYTES, |bytes, entry| bytes.max(entry.ebx.saturating_add(entry.eax)));
    for entry in entries.iter_mut().filter(|entry| entry.function == 0xd && entry.index == 0) {
        (entry.eax, entry.ecx) = (components, bytes);
    }
}

#[cfg(test)]
mod tests;
