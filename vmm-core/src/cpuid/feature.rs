//! Features of a processor: where CPUID tells of them, and what people call them.

/// A register of CPUID's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Eax => "eax",
            Self::Ebx => "ebx",
            Self::Ecx => "ecx",
            Self::Edx => "edx",
        }
    }
}

/// A bit of CPUID's output: leaf, subleaf, register, number.
pub(super) type Bit = (u32, u32, Register, u32);

/// The bit that people call `name`.
pub(super) fn by_name(name: &str) -> Option<Bit> {
    let found = FEATURE_NAMES.iter().find(|(.., known)| *known == name);
    found.map(|(leaf, subleaf, register, bit, _)| (*leaf, *subleaf, *register, *bit))
}

/// What people call a bit, or where it is.
pub(super) fn name((leaf, subleaf, register, bit): Bit) -> String {
    let known = FEATURE_NAMES
        .iter()
        .find(|(l, s, r, b, _)| (*l, *s, *r, *b) == (leaf, subleaf, register, bit));
    match known {
        Some((.., name)) => (*name).to_string(),
        None if subleaf == 0 => format!("cpuid {leaf:#x} {} bit {bit}", register.name()),
        None => format!("cpuid {leaf:#x}.{subleaf} {} bit {bit}", register.name()),
    }
}

/// Registers in which each bit is a feature that a guest may come to depend on: leaf, subleaf,
/// register, bits to look at (Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E).
pub(super) const FEATURE_WORDS: &[(u32, u32, Register, u32)] = &[
    (1, 0, Register::Ecx, !0),
    // Without ACPI (22), HTT (28) and TM (29), which tell of the platform.
    (1, 0, Register::Edx, !(1 << 22 | 1 << 28 | 1 << 29)),
    (7, 0, Register::Ebx, !0),
    (7, 0, Register::Ecx, !0),
    (7, 0, Register::Edx, !0),
    (7, 1, Register::Eax, !0),
    (0xd, 0, Register::Eax, !0),
    (0xd, 1, Register::Eax, !0),
    (0xd, 1, Register::Ecx, !0),
    (0x4000_0001, 0, Register::Eax, !0),
    (0x8000_0001, 0, Register::Ecx, !0),
    (0x8000_0001, 0, Register::Edx, !0),
    (0x8000_0007, 0, Register::Edx, 1 << 8),
    (0x8000_0008, 0, Register::Ebx, !0),
];

/// Names of features that people know by name: leaf, subleaf, register, bit, name in /proc/cpuinfo as a rule.
const FEATURE_NAMES: &[(u32, u32, Register, u32, &str)] = &[
    (1, 0, Register::Ecx, 0, "sse3"),
    (1, 0, Register::Ecx, 1, "pclmulqdq"),
    (1, 0, Register::Ecx, 3, "monitor"),
    (1, 0, Register::Ecx, 9, "ssse3"),
    (1, 0, Register::Ecx, 12, "fma"),
    (1, 0, Register::Ecx, 13, "cx16"),
    (1, 0, Register::Ecx, 15, "pdcm"),
    (1, 0, Register::Ecx, 17, "pcid"),
    (1, 0, Register::Ecx, 19, "sse4_1"),
    (1, 0, Register::Ecx, 20, "sse4_2"),
    (1, 0, Register::Ecx, 21, "x2apic"),
    (1, 0, Register::Ecx, 22, "movbe"),
    (1, 0, Register::Ecx, 23, "popcnt"),
    (1, 0, Register::Ecx, 24, "tsc_deadline_timer"),
    (1, 0, Register::Ecx, 25, "aes"),
    (1, 0, Register::Ecx, 26, "xsave"),
    (1, 0, Register::Ecx, 28, "avx"),
    (1, 0, Register::Ecx, 29, "f16c"),
    (1, 0, Register::Ecx, 30, "rdrand"),
    (1, 0, Register::Ecx, 31, "hypervisor"),
    (1, 0, Register::Edx, 0, "fpu"),
    (1, 0, Register::Edx, 1, "vme"),
    (1, 0, Register::Edx, 2, "de"),
    (1, 0, Register::Edx, 3, "pse"),
    (1, 0, Register::Edx, 4, "tsc"),
    (1, 0, Register::Edx, 5, "msr"),
    (1, 0, Register::Edx, 6, "pae"),
    (1, 0, Register::Edx, 7, "mce"),
    (1, 0, Register::Edx, 8, "cx8"),
    (1, 0, Register::Edx, 9, "apic"),
    (1, 0, Register::Edx, 11, "sep"),
    (1, 0, Register::Edx, 12, "mtrr"),
    (1, 0, Register::Edx, 13, "pge"),
    (1, 0, Register::Edx, 14, "mca"),
    (1, 0, Register::Edx, 15, "cmov"),
    (1, 0, Register::Edx, 16, "pat"),
    (1, 0, Register::Edx, 17, "pse36"),
    (1, 0, Register::Edx, 19, "clflush"),
    (1, 0, Register::Edx, 23, "mmx"),
    (1, 0, Register::Edx, 24, "fxsr"),
    (1, 0, Register::Edx, 25, "sse"),
    (1, 0, Register::Edx, 26, "sse2"),
    (1, 0, Register::Edx, 27, "ss"),
    (7, 0, Register::Ebx, 0, "fsgsbase"),
    (7, 0, Register::Ebx, 1, "tsc_adjust"),
    (7, 0, Register::Ebx, 3, "bmi1"),
    (7, 0, Register::Ebx, 4, "hle"),
    (7, 0, Register::Ebx, 5, "avx2"),
    (7, 0, Register::Ebx, 7, "smep"),
    (7, 0, Register::Ebx, 8, "bmi2"),
    (7, 0, Register::Ebx, 9, "erms"),
    (7, 0, Register::Ebx, 10, "invpcid"),
    (7, 0, Register::Ebx, 11, "rtm"),
    (7, 0, Register::Ebx, 14, "mpx"),
    (7, 0, Register::Ebx, 16, "avx512f"),
    (7, 0, Register::Ebx, 17, "avx512dq"),
    (7, 0, Register::Ebx, 18, "rdseed"),
    (7, 0, Register::Ebx, 19, "adx"),
    (7, 0, Register::Ebx, 20, "smap"),
    (7, 0, Register::Ebx, 21, "avx512ifma"),
    (7, 0, Register::Ebx, 23, "clflushopt"),
    (7, 0, Register::Ebx, 24, "clwb"),
    (7, 0, Register::Ebx, 28, "avx512cd"),
    (7, 0, Register::Ebx, 29, "sha_ni"),
    (7, 0, Register::Ebx, 30, "avx512bw"),
    (7, 0, Register::Ebx, 31, "avx512vl"),
    (7, 0, Register::Ecx, 1, "avx512vbmi"),
    (7, 0, Register::Ecx, 2, "umip"),
    (7, 0, Register::Ecx, 3, "pku"),
    (7, 0, Register::Ecx, 6, "avx512_vbmi2"),
    (7, 0, Register::Ecx, 7, "shstk"),
    (7, 0, Register::Ecx, 8, "gfni"),
    (7, 0, Register::Ecx, 9, "vaes"),
    (7, 0, Register::Ecx, 10, "vpclmulqdq"),
    (7, 0, Register::Ecx, 11, "avx512_vnni"),
    (7, 0, Register::Ecx, 12, "avx512_bitalg"),
    (7, 0, Register::Ecx, 14, "avx512_vpopcntdq"),
    (7, 0, Register::Ecx, 16, "la57"),
    (7, 0, Register::Ecx, 22, "rdpid"),
    (7, 0, Register::Edx, 4, "fsrm"),
    (7, 0, Register::Edx, 8, "avx512_vp2intersect"),
    (7, 0, Register::Edx, 10, "md_clear"),
    (7, 0, Register::Edx, 14, "serialize"),
    (7, 0, Register::Edx, 20, "ibt"),
    (7, 0, Register::Edx, 22, "amx_bf16"),
    (7, 0, Register::Edx, 23, "avx512_fp16"),
    (7, 0, Register::Edx, 24, "amx_tile"),
    (7, 0, Register::Edx, 25, "amx_int8"),
    (7, 0, Register::Edx, 26, "spec_ctrl"),
    (7, 0, Register::Edx, 27, "intel_stibp"),
    (7, 0, Register::Edx, 28, "flush_l1d"),
    (7, 0, Register::Edx, 29, "arch_capabilities"),
    (7, 0, Register::Edx, 31, "spec_ctrl_ssbd"),
    (7, 1, Register::Eax, 4, "avx_vnni"),
    (7, 1, Register::Eax, 5, "avx512_bf16"),
    (0xd, 1, Register::Eax, 0, "xsaveopt"),
    (0xd, 1, Register::Eax, 1, "xsavec"),
    (0xd, 1, Register::Eax, 2, "xgetbv1"),
    (0xd, 1, Register::Eax, 3, "xsaves"),
    (0x8000_0001, 0, Register::Ecx, 0, "lahf_lm"),
    (0x8000_0001, 0, Register::Ecx, 1, "cmp_legacy"),
    (0x8000_0001, 0, Register::Ecx, 2, "svm"),
    (0x8000_0001, 0, Register::Ecx, 4, "cr8_legacy"),
    (0x8000_0001, 0, Register::Ecx, 5, "abm"),
    (0x8000_0001, 0, Register::Ecx, 6, "sse4a"),
    (0x8000_0001, 0, Register::Ecx, 7, "misalignsse"),
    (0x8000_0001, 0, Register::Ecx, 8, "3dnowprefetch"),
    (0x8000_0001, 0, Register::Ecx, 9, "osvw"),
    (0x8000_0001, 0, Register::Ecx, 22, "topoext"),
    (0x8000_0001, 0, Register::Ecx, 23, "perfctr_core"),
    (0x8000_0001, 0, Register::Edx, 11, "syscall"),
    (0x8000_0001, 0, Register::Edx, 20, "nx"),
    (0x8000_0001, 0, Register::Edx, 22, "mmxext"),
    (0x8000_0001, 0, Register::Edx, 25, "fxsr_opt"),
    (0x8000_0001, 0, Register::Edx, 26, "pdpe1gb"),
    (0x8000_0001, 0, Register::Edx, 27, "rdtscp"),
    (0x8000_0001, 0, Register::Edx, 29, "lm"),
    (0x8000_0007, 0, Register::Edx, 8, "constant_tsc"),
    (0x8000_0008, 0, Register::Ebx, 0, "clzero"),
    (0x8000_0008, 0, Register::Ebx, 2, "xsaveerptr"),
    (0x8000_0008, 0, Register::Ebx, 9, "wbnoinvd"),
    (0x8000_0008, 0, Register::Ebx, 12, "ibpb"),
    (0x8000_0008, 0, Register::Ebx, 14, "ibrs"),
    (0x8000_0008, 0, Register::Ebx, 15, "stibp"),
    (0x8000_0008, 0, Register::Ebx, 24, "ssbd"),
    (0x8000_0008, 0, Register::Ebx, 25, "virt_ssbd"),
];
