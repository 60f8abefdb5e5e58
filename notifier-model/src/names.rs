//! What a program runs under, by name: the scheme of walks, and how each device keeps its translations right.

use lazytlb_machine::names;

names! {
    /// What keeps subscribers in place while they are called ([`lazytlb_mmu_notifier::walks`]).
    Scheme, "scheme of walks" {
        /// Hazard pointers to chains.
        Hazards "hazards",
        /// Two counts of walks, in turn.
        Epochs "epochs",
        /// The same as Linux has it.
        Srcu "srcu",
    }
}

names! {
    /// How a device's driver keeps its translations right while page tables change.
    Client, "client" {
        /// Counts the invalidations that go on, remembers a range around all of them, and has a sequence for those that are over: KVM since 2021.
        Kvm "kvm",
        /// Counts them, and looks up with its lock held: GRU, and KVM before.
        Gru "gru",
        /// Remembers the range of each: XPMEM.
        Xpmem "xpmem",
        /// Counts for each region of its own, and lets regions that come meanwhile wait: RDMA's on-demand paging, 2014.
        Odp "odp",
        /// Retries by the sequence of an interval: HMM, and all newer drivers.
        Hmm "hmm",
        /// Gives up what it maps, and may refuse: i915 and amdgpu before 2019.
        Userptr "userptr",
        /// Holds a reference to each page, and drops its translations at the end: KVM, February 2008.
        Pins "pins",
        /// Keeps reverse maps of its own, and is told of pages: the second class of February 2008.
        Rmap "rmap",
        /// Walks the CPU's tables, and has a TLB: an IOMMU.
        Sva "sva",
    }
}

names! {
    /// A planted bug: of a driver, or of the kernel around the chain.
    Mutant, "mutant" {
        /// The program itself breaks a rule.
        Caller "caller",
        /// A driver that has a sequence does not look at it.
        CounterOnly "counter-only",
        /// A driver reads its sequence when it has looked up already.
        SequenceReadLate "sequence-read-late",
        /// A driver tests without its lock whether to retry.
        RetryUnlocked "retry-unlocked",
        /// A driver uses what it has looked up before it holds its lock.
        LooksUpFirst "looks-up-first",
        /// A driver maps again, in the start of an invalidation, what it has just dropped.
        RefillsInStart "refills-in-start",
        /// A driver drops its translations before it counts an invalidation.
        DropsBeforeCount "drops-before-count",
        /// A driver uses what it has looked up when it has released its lock.
        UsesOutside "uses-outside",
        /// A driver marks a page dirty under its lock, and takes the page's for that.
        MarksUnderLock "marks-under-lock",
        /// Two callbacks that find a region idle both destroy it.
        DestroysTwice "destroys-twice",
        /// A driver moves its region while invalidations go on, some of which it has counted.
        MovesUnawaited "moves-unawaited",
        /// A driver looks into what it has freed in release when it is asked for accessed bits.
        AgesAfterRelease "ages-after-release",
        /// A callback takes the address space, and gives it back: for the last time, perhaps.
        PutsMm "puts-mm",
        /// A driver drops its translations at the end, not at the start, and holds no reference.
        DropsAtEnd "drops-at-end",
        /// A driver does nothing but when the address space goes.
        OnlyRelease "only-release",
        /// A driver drops translations from its tables, and does not flush its TLB.
        NoTlbFlush "no-tlb-flush",
        /// A driver drops translations, and does not write its device's cache back.
        NoWriteBack "no-write-back",
        /// A driver drops translations, and does not say which pages its device has written.
        ForgetsDirty "forgets-dirty",
        /// A driver does nothing when the address space goes.
        NoRelease "no-release",
        /// A driver unsubscribes when it is released.
        UnregistersInRelease "unregisters-in-release",
        /// Nobody is told that the address space goes.
        ExitNotAnnounced "exit-not-announced",
        /// Waits look at what they wait for without the chain's lock (Linux before 5.18).
        WaitsUnlocked "waits-unlocked",
        /// Nobody takes the chain's lock.
        ChainUnlocked "chain-unlocked",
        /// A driver that remembers ranges is held off by all of them.
        HeldOffByAny "held-off-by-any",
        /// Nobody waits for the callbacks that run.
        WalksNotAwaited "walks-not-awaited",
        /// Registration does not take all locks under which an invalidation can begin.
        LockNotTaken "lock-not-taken",
        /// A callback sleeps where it must not.
        Sleeps "sleeps",
    }
}

impl Client {
    /// Whether there was anything like it before there were interval subscribers, and flushes: former forms of the list know no others.
    pub(crate) fn is_of_list(self) -> bool {
        !matches!(self, Client::Hmm | Client::Sva)
    }

    /// Whether nothing it does may be found wrong. Who holds references to pages until an invalidation ends uses pages that the CPUs have left: what it
    /// writes meanwhile is lost. So does who is told of pages, until it is.
    pub fn is_right(self) -> bool {
        !matches!(self, Client::Pins | Client::Rmap)
    }
}
