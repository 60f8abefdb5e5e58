//! What a program runs under, by name: a generation of the API, and what the architecture defers.

use lazytlb_machine::names;

names! {
    /// A generation of the API ([`lazytlb_lazy_mmu::generations`]), in the order of their coming.
    Api, "generation" {
        /// The architecture's hooks alone.
        Hooks "hooks",
        /// The same, with arm64's warning of nested sections.
        HooksStrict "hooks-strict",
        /// The caller keeps what enable returns.
        Stack "stack",
        /// A count and a flag, and nothing allowed in a pause.
        Counter "counter",
        /// A count that a pause takes away and gives back.
        CounterSave "counter-save",
        /// A count and a flag; an overflow stops the machine.
        V3 "v3",
        /// A count and a flag; an overflow is warned of.
        V4 "v4",
        /// Two counts: Linux 7.0.
        Merged "merged",
    }
}

names! {
    /// What an architecture defers ([`lazytlb_lazy_mmu::backends`]).
    Arch, "back end" {
        /// Nothing.
        None "none",
        /// Barriers.
        Arm64 "arm64",
        /// Invalidations in the hash table and the TLBs.
        PowerpcHash "powerpc-hash",
        /// Nothing: the same kernel on a machine without a hash table.
        PowerpcRadix "powerpc-radix",
        /// Invalidations in the TSB and the TLBs.
        Sparc64 "sparc64",
        /// Stores and flushes in order; to Linux 6.19, but for 2023 to 2025.
        X1 "xen-x1",
        /// The same, 2023 to March 2025.
        X2 "xen-x2",
        /// The same, Linux 7.0 to 7.1-rc3.
        X3 "xen-x3",
        /// The same from 7.1-rc4 on.
        X4 "xen-x4",
        /// The same after May 2026.
        X5 "xen-x5",
        /// Stores into the entries that a section has named.
        S390 "s390",
    }
}

impl Api {
    /// Whether what callers may rely on holds on an architecture: with the merged generation everywhere but under the two forms
    /// of Xen's hooks that were wrong. The former generations claim nothing.
    pub fn claims(self, arch: Arch) -> bool {
        self == Api::Merged && !matches!(arch, Arch::X2 | Arch::X3)
    }
}

impl Arch {
    /// Whether its hardware writes into entries that a page was accessed, and written. On the others the kernel does, when an access
    /// faults that the bits do not allow, or it is kept elsewhere.
    pub(crate) fn writes_bits(self) -> bool {
        !matches!(self, Arch::PowerpcHash | Arch::PowerpcRadix | Arch::Sparc64 | Arch::S390)
    }
}

names! {
    /// A planted bug: of a back end, or of the kernel around it.
    Mutant, "mutant" {
        /// The program itself breaks a rule.
        Caller "caller",
        /// Sections do not disable preemption (powerpc before 2022, sparc64 before 2025).
        Preemptible "preemptible",
        /// Nobody asks whether the caller is in an interrupt (arm64 before June 2025, v4 without its later patch).
        InterruptsLetIn "interrupts-let-in",
        /// A task that has not run yet is not paused, where the hooks at a switch resume who comes.
        NewTasksNotPaused "new-tasks-not-paused",
        /// Nobody waits for the CPUs that read a batch (sparc64 before 2013).
        NotAwaited "not-awaited",
        /// The flush hook uses the batch where there is no hash table (powerpc in v4).
        FlushWithoutHash "flush-without-hash",
        /// A flush of the TLBs goes past what is queued.
        FlushPastQueue "flush-past-queue",
        /// The entries that a section has named are poisoned for all CPUs (s390's sanitizer, v5).
        PoisonForAll "poison-for-all",
        /// An entry is half of what the sanitizer tells apart.
        HalfGranules "half-granules",
    }
}
