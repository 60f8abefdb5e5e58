//! [`X86Broadcast`]: what AMD's INVLPGB adds to x86's rule: ASIDs that are the same on all CPUs, and flushes by broadcast.
//!
//! An mm begins under [`X86_6_14`](crate::X86_6_14): in each CPU's own slots, with generations, flushed by interrupt. A flush
//! that finds it running on `FROM` CPUs gives it a *global ASID* for the rest of its life. From then on
//!
//! | step | what it does |
//! | --- | --- |
//! | a switch to the mm | loads the root under the global ASID and keeps what is cached: broadcasts have kept that right |
//! | a switch between its threads, a return from lazy mode | goes over to the global ASID if the CPU is not on it; else nothing, not even a barrier |
//! | a flush | INVLPGB by the ASID; in transition an interrupt to the stragglers; TLBSYNC |
//! | a straggler that is interrupted | goes over to the global ASID; if it is lazy, leaves for `init_mm`, MMU only |
//! | a flush that finds no straggler | ends the transition |
//! | the last mmdrop | gives the ASID back: *freed*, which is not yet free |
//! | an mm that wants an ASID when none is free | has everything flushed everywhere; what was freed is free |
//!
//! The transition (Linux's `asid_transition`): CPUs that were on the mm when it got its ASID go on under one of their own
//! slots, which no broadcast by the ASID reaches. Until a flush has found none of them, it interrupts them too. What is cached
//! in their slots is never used again.
//!
//! # What a flush does to a lazy CPU
//!
//! * Before the mm has a global ASID: as under `X86_6_14`, nothing, or it leaves for `init_mm` if tables are freed.
//! * In transition: a lazy straggler leaves for `init_mm`, MMU only. (Linux 6.15 has it go over to the global ASID, after which it
//!   is lazy no more; van Riel's "x86/mm: fix race between flush_tlb_func and idle task leave_mm", posted on 20 May 2025, has it
//!   leave, as here.)
//! * After it: nothing, *even when tables are freed*. It stays on the mm's tables, and need not be skipped or moved: a
//!   broadcast drops partial walks too (Linux does not set INVLPGB's flag for final translations only), and TLBSYNC waits for
//!   walks that are under way. So the flush of the last mmput takes nobody off the mm: its root must live as long as a borrow
//!   does, and a strategy that relies on the flush to end borrows, or to move the MMU, has nothing to rely on here
//!   (`litmus/broadcast-exit.litmus`).
//! * Who walks page tables in software behind disabled interrupts is not waited for any more; tables must be freed behind
//!   something else (Linux commit a37259732a7d, "x86/mm: Make MMU_GATHER_RCU_TABLE_FREE unconditional").
//!
//! `mm_cpumask` is kept as lazily as under `X86_6_14`: the flushes before the ASID take CPUs out of it whose `active_mm` names
//! the mm, so [`MaskCoversLazy`](lazytlb_core::platform::MaskCoversLazy) must not be claimed. Nobody is taken out once the mm is over
//! the transition.
//!
//! # Orderings
//!
//! The ASID is in the upper bits of `tlb_gen`, so that it is read together with the generation, and flushes and its assignment
//! are read-modify-writes of one word, one after the other:
//!
//! | pair | the one | the other |
//! | --- | --- | --- |
//! | generation | reads `tlb_gen` with the ASID in it ([`TLB_GEN_READ`](crate::x86::TLB_GEN_READ), acquire), walks under the ASID | a flush that is earlier in `tlb_gen` and so has not seen the ASID: writes page tables, raises `tlb_gen` ([`TLB_GEN`](crate::x86::TLB_GEN), full) |
//! | L7 | stores [`SWITCHING`](crate::x86::SWITCHING), full barrier, reads `tlb_gen` without the ASID | a flush in transition: raises `tlb_gen` with the ASID in it (full), reads mask and `loaded_mm` |
//! | loaded | loads the root under the ASID, says so ([`LOADED_ASID`], release) | the flush that ends the transition reads it (acquire) |
//! | transition | marks the transition, puts the ASID into `tlb_gen` ([`GLOBAL_ASID`], full) | a flush raises `tlb_gen` (full), reads the mark |
//!
//! By the first, what is cached under the ASID is no older than any flush that knew nothing of it. By the second, a CPU that has
//! not seen the ASID is found by the flush that would end the transition. So after that all who have the mm loaded have it
//! loaded under the ASID.
//!
//! # Sources
//!
//! Rik van Riel's series "AMD broadcast TLB invalidation", v14 of 25 February 2025, in Linux 6.15; arch/x86/mm/tlb.c there. The
//! allocator is commit d504d1247e36, "x86/mm: Add global ASID allocation helper functions"; the context switch be88a1dd6112,
//! "x86/mm: Handle global ASID context switch and TLB flush"; the broadcasts and the end of the transition 4afeb0ed1753, "x86/mm: Enable
//! broadcast TLB invalidation for multi-threaded processes"; the end of an ASID c9826613a9cb, "x86/mm: Add global ASID process exit
//! helpers". The series' letter says 3 CPUs or more; what was merged gives ASIDs to
//! mms that run on *more than* 3.
//!
//! Departures:
//!
//! * Linux has the ASID in a word of its own, and loads that x86 keeps in order; elsewhere that would take two barriers.
//! * Linux looks now and then whether an mm should have an ASID (one flush in 32, about), here each flush looks that interrupts.
//! * Linux waits for CPUs that are switching, and if there is one straggler interrupts the whole mask; here who is switching
//!   counts as a straggler, and stragglers alone are interrupted.
//! * Linux begins the search for an ASID anew only at the end of all ASIDs; here an mm that finds none free has the freed ones
//!   recycled at once, and if there are none, stays with its slots.
//! * Linux allows what is left of 2^11 or 2^12 ASIDs; here each CPU brings a word of the pool, one bit for an ASID, so there
//!   are 64 for each CPU, or as many as there are tags beside the slots. No statics, no allocation.
//! * A CPU that goes offline drops all it has cached, because broadcasts may not reach it.
//! * A flush is of the whole mm.

use core::cell::Cell;
use core::fmt;
use core::marker::PhantomData;

use lazytlb_core::cpumask::CpuId;
use lazytlb_core::memory::{AtomicInt, AtomicWord, Label, Labelled, Ordering::*};
use lazytlb_core::mm::{MmCore, MmPtr, Slot};
use lazytlb_core::mm_switch::{ArchHost, MmSwitch};
use lazytlb_core::platform::{IrqGuard, Platform, PreemptGuard};
use lazytlb_core::tlb::{Invlpgb, Tag};

use crate::x86::{Asids, Context, TlbState, X86, X86Steps, context, switching};

/// x86's rule with AMD's broadcasts, as of Linux 6.15.
///
/// `SLOTS` and `TRIM` are those of [`X86_6_14`](crate::X86_6_14); an mm gets a global ASID when a flush finds it running on
/// `FROM` CPUs. [`TaggedTlb::nr_tags`](lazytlb_core::tlb::TaggedTlb::nr_tags) is more than `SLOTS`, or there are no global ASIDs.
pub type X86Broadcast<const SLOTS: usize = 6, const TRIM: usize = 64, const FROM: usize = 4> =
    X86<Broadcasting<Complete, TRIM, FROM>, SLOTS>;

/// [`X86Broadcast`]'s steps: those of [`X86_6_14`](crate::X86_6_14), and global ASIDs.
pub struct Broadcasting<Steps, const TRIM: usize, const FROM: usize>(PhantomData<Steps>);

impl<Steps, const TRIM: usize, const FROM: usize> fmt::Debug for Broadcasting<Steps, TRIM, FROM> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Broadcasting")
    }
}

/// The global ASID is put into `tlb_gen` (full): the transition is marked before, and flushes are before it or after it.
pub const GLOBAL_ASID: Label = Label::new("x86.global_asid");
/// A CPU says that it has its mm loaded under the global ASID (release): who reads it finds the MMU there or beyond.
pub const LOADED_ASID: Label = Label::new("x86.loaded_asid");
/// A flush reads what a CPU has loaded, and under which ASID (acquire): the MMU is there, or beyond, when the flush goes on.
/// Pairs with [`LOADED_ASID`] and [`LOADED`](crate::x86::LOADED).
pub const LOADED_READ: Label = Label::new("x86.loaded_read");
/// The lock of the pool of global ASIDs: acquire and release.
pub const GLOBAL_ASID_LOCK: Label = Label::new("x86.global_asid_lock");
/// The interrupts-off section around that lock: an mm may be freed, and its ASID with it, in an interrupt.
pub const GLOBAL_ASID_IRQS: Label = Label::new("x86.global_asid_irqs");

/// Where the ASID begins in `tlb_gen`: PCIDs have 12 bits. INVLPGB is used on 64-bit kernels only, which leaves 52 to count
/// flushes.
const ASID_SHIFT: u32 = usize::BITS - 12;

/// The steps that can go wrong. A test overrides one of them to see it caught.
pub trait BroadcastSteps: 'static {
    /// A flush stays on one CPU from its first INVLPGB to its TLBSYNC.
    fn pin<P: Platform>(platform: P) -> Option<PreemptGuard<P>> {
        Some(PreemptGuard::new(platform))
    }

    /// A flush waits for its broadcast.
    fn tlbsync<P: Invlpgb>(platform: P) {
        platform.tlbsync();
    }

    /// Whether a flush in transition interrupts the CPUs that its broadcast does not reach.
    fn interrupts_stragglers() -> bool {
        true
    }

    /// Which of a CPU's share of the pool become free when none is, of those that are `used`: those that were `freed`.
    fn recycled(used: usize, freed: usize) -> usize {
        let _ = used;
        freed
    }

    /// A CPU that goes offline drops all that it has cached: broadcasts may not reach it.
    fn go_down<P: Platform>(platform: P) {
        platform.flush_tlb_local();
    }
}

/// The steps as they must be.
#[derive(Clone, Copy, Debug)]
pub struct Complete;

impl BroadcastSteps for Complete {}

/// What [`X86Broadcast`] keeps in each mm beside [`X86_6_14`](crate::X86_6_14)'s state.
pub struct GlobalContext<P: Platform> {
    /// Whether there may be CPUs that run the mm under a slot of their own, while it has a global ASID.
    asid_transition: P::AtomicUsize,
}

impl<P: Platform> GlobalContext<P> {
    /// From a ready word, zero; `const`, for statics.
    pub const fn from_parts(asid_transition: P::AtomicUsize) -> Self {
        GlobalContext { asid_transition }
    }
}

impl<P: Platform> Slot for GlobalContext<P> {
    fn new() -> Self {
        GlobalContext { asid_transition: AtomicWord::new(0) }
    }

    fn reinit(&self) {
        self.asid_transition.store(0, Relaxed);
    }
}

impl<P: Platform> fmt::Debug for GlobalContext<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GlobalContext { .. }")
    }
}

/// What [`X86Broadcast`] keeps for each CPU beside [`X86_6_14`](crate::X86_6_14)'s state.
pub struct GlobalState<P: Platform> {
    /// The global ASID that `loaded_mm` is loaded under; 0 for none. Other CPUs read it.
    loaded_asid: P::AtomicUsize,
    /// The CPU's share of the pool: ASIDs that are handed out or freed. Under the lock.
    used: P::AtomicUsize,
    /// Those of them that are freed, and may be cached under still. Under the lock.
    freed: P::AtomicUsize,
    /// The lock of the pool, in CPU 0's.
    lock: P::AtomicUsize,
    /// From where a free ASID is looked for, in CPU 0's. Under the lock.
    next: P::AtomicUsize,
}

impl<P: Platform> GlobalState<P> {
    /// From ready words, all zero; `const`, for statics.
    pub const fn from_parts(
        loaded_asid: P::AtomicUsize,
        used: P::AtomicUsize,
        freed: P::AtomicUsize,
        lock: P::AtomicUsize,
        next: P::AtomicUsize,
    ) -> Self {
        GlobalState { loaded_asid, used, freed, lock, next }
    }
}

impl<P: Platform> Slot for GlobalState<P> {
    fn new() -> Self {
        let word = || AtomicWord::new(0);
        Self::from_parts(word(), word(), word(), word(), word())
    }

    fn reinit(&self) {
        for word in [&self.loaded_asid, &self.used, &self.freed, &self.next] {
            word.store(0, Relaxed);
        }
    }
}

impl<P: Platform> fmt::Debug for GlobalState<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GlobalState { .. }")
    }
}

impl<P, S, const TRIM: usize, const FROM: usize> X86Steps<P> for Broadcasting<S, TRIM, FROM>
where
    P: Invlpgb,
    S: BroadcastSteps,
{
    const KEEPS_BIT: bool = true;
    const TRIM_EVERY: usize = TRIM;

    type Asids = Self;
}

impl<P, S, const TRIM: usize, const FROM: usize> Asids<P> for Broadcasting<S, TRIM, FROM>
where
    P: Invlpgb,
    S: BroadcastSteps,
{
    type CpuState = GlobalState<P>;
    type MmState = GlobalContext<P>;

    const HAS_GLOBAL: bool = true;

    fn global_asid(tlb_gen: usize) -> Option<Tag> {
        const { assert!(usize::BITS == 64, "INVLPGB is for 64-bit kernels") };
        some_tag(tlb_gen >> ASID_SHIFT)
    }

    fn loaded(cpu: &GlobalState<P>) -> Option<Tag> {
        some_tag(cpu.loaded_asid.load(Acquire.at(LOADED_READ)))
    }

    fn set_loaded(cpu: &GlobalState<P>, asid: Option<Tag>) {
        cpu.loaded_asid.store(asid.map_or(0, |tag| tag.0), Release.at(LOADED_ASID));
    }

    /// INVLPGB, in transition an interrupt to the stragglers, TLBSYNC: the hardware works while others are interrupted.
    ///
    /// The page tables were written before `tlb_gen` was raised, a full barrier.
    fn broadcast_tlb_flush<Steps, const SLOTS: usize>(
        host: &impl ArchHost<P>,
        mm: &MmCore<P>,
        asid: Tag,
        tables_freed: bool,
    ) where
        Steps: X86Steps<P, Asids = Self>,
        P: Platform<Arch = X86<Steps, SLOTS>>,
    {
        let platform = host.platform();
        let _pinned = S::pin(platform);
        platform.invlpgb_tag(asid);
        finish_asid_transition::<P, S>(host, mm, tables_freed, |cpu| is_straggler(host.arch_state(cpu), mm, asid));
        S::tlbsync(platform);
    }

    fn consider_global_asid<Steps, const SLOTS: usize>(host: &impl ArchHost<P>, mm: &MmCore<P>)
    where
        Steps: X86Steps<P, Asids = Self>,
        P: Platform<Arch = X86<Steps, SLOTS>>,
    {
        let is_active = |&cpu: &CpuId| is_active(host.arch_state(cpu), mm);
        if mm.cpumask().cpus(Relaxed).filter(is_active).take(FROM).count() < FROM {
            return;
        }
        let pool = Pool::<_, _, S, SLOTS>::lock(host);
        let context = context(mm);
        if <Self as Asids<P>>::global_asid(context.tlb_gen.load(Relaxed)).is_some() {
            return;
        }
        if let Some(asid) = pool.allocate() {
            context.global.asid_transition.store(1, Relaxed);
            context.tlb_gen.fetch_add_full(asid.0 << ASID_SHIFT, GLOBAL_ASID);
        }
    }

    fn free_global_asid<Steps, const SLOTS: usize>(host: &impl ArchHost<P>, mm: &MmCore<P>)
    where
        Steps: X86Steps<P, Asids = Self>,
        P: Platform<Arch = X86<Steps, SLOTS>>,
    {
        if let Some(asid) = <Self as Asids<P>>::global_asid(context(mm).tlb_gen.load(Relaxed)) {
            Pool::<_, _, S, SLOTS>::lock(host).free(asid);
        }
    }

    fn cpu_going_down(platform: P) {
        S::go_down(platform);
    }
}

/// An ASID as it is stored, 0 for none.
fn some_tag(asid: usize) -> Option<Tag> {
    (asid != 0).then_some(Tag(asid))
}

/// Interrupts the CPUs that the broadcast does not reach; if there are none, the transition is over.
fn finish_asid_transition<P, S>(
    host: &impl ArchHost<P>,
    mm: &MmCore<P>,
    tables_freed: bool,
    is_straggler: impl Fn(CpuId) -> bool,
) where
    P: Invlpgb,
    S: BroadcastSteps,
    P::Arch: MmSwitch<P, MmState = Context<P, GlobalContext<P>>>,
{
    let in_transition = &context(mm).global.asid_transition;
    if in_transition.load(Relaxed) == 0 || !S::interrupts_stragglers() {
        return;
    }
    let found = Cell::new(false);
    host.flush_cpus_if(mm, tables_freed, |cpu| {
        let is_straggler = is_straggler(cpu);
        found.set(found.get() || is_straggler);
        is_straggler
    });
    if !found.get() {
        in_transition.store(0, Relaxed);
    }
}

/// Whether a CPU of the mask is on the mm under another ASID than its global one, or may come to be.
fn is_straggler<P: Invlpgb, const SLOTS: usize>(
    state: &TlbState<P, SLOTS, GlobalState<P>>,
    mm: &MmCore<P>,
    asid: Tag,
) -> bool {
    // Acquire: `loaded_asid` is read after it, and is of this mm or of a later one.
    let loaded = state.loaded_mm.load(Acquire.at(LOADED_READ));
    if loaded == switching::<P>() {
        return true;
    }
    loaded == MmPtr::from(mm).as_ptr() && state.global.loaded_asid.load(Acquire.at(LOADED_READ)) != asid.0
}

/// Whether a CPU of the mask runs the mm, as far as one can tell from elsewhere.
fn is_active<P: Invlpgb, const SLOTS: usize>(state: &TlbState<P, SLOTS, GlobalState<P>>, mm: &MmCore<P>) -> bool {
    state.is_lazy.load(Relaxed) == 0 && state.loaded_mm.load(Relaxed) == MmPtr::from(mm).as_ptr()
}

/// A section under the pool's lock with interrupts off, until dropped: the lock is given back first.
struct Locked<'a, P: Platform> {
    lock: &'a P::AtomicUsize,
    _irqs_off: IrqGuard<P>,
}

impl<'a, P: Platform> Locked<'a, P> {
    fn new(lock: &'a P::AtomicUsize, platform: P) -> Self {
        let irqs_off = IrqGuard::new(platform, GLOBAL_ASID_IRQS);
        platform.spin_until(|| lock.compare_exchange(0, 1, Acquire.at(GLOBAL_ASID_LOCK), Relaxed).ok());
        Locked { lock, _irqs_off: irqs_off }
    }
}

impl<P: Platform> Drop for Locked<'_, P> {
    fn drop(&mut self) {
        self.lock.store(0, Release.at(GLOBAL_ASID_LOCK));
    }
}

/// The pool of global ASIDs, locked: bits that are spread over all CPUs' states. ASID number `n` is the tag
/// `SLOTS + 1 + n`, behind the tags of the CPUs' own slots.
struct Pool<'a, P: Platform, H, S, const SLOTS: usize> {
    host: &'a H,
    platform: P,
    _locked: Locked<'a, P>,
    _steps: PhantomData<S>,
}

impl<'a, P, H, S, const SLOTS: usize> Pool<'a, P, H, S, SLOTS>
where
    P: Invlpgb,
    P::Arch: MmSwitch<P, CpuState = TlbState<P, SLOTS, GlobalState<P>>>,
    H: ArchHost<P>,
    S: BroadcastSteps,
{
    fn lock(host: &'a H) -> Self {
        let platform = host.platform();
        let locked = Locked::new(&host.arch_state(CpuId::new(0)).global.lock, platform);
        Pool { host, platform, _locked: locked, _steps: PhantomData }
    }

    /// How many ASIDs there are.
    fn len(&self) -> usize {
        let bits = self.platform.nr_cpu_ids() * usize::BITS as usize;
        bits.min(self.platform.nr_tags().saturating_sub(SLOTS)).min((1 << (usize::BITS - ASID_SHIFT)) - 1 - SLOTS)
    }

    /// The CPU that has an ASID's bits, and the bit.
    fn share(&self, n: usize) -> (&GlobalState<P>, usize) {
        let bits = usize::BITS as usize;
        (&self.host.arch_state(CpuId::new(n / bits)).global, 1 << (n % bits))
    }

    fn shares(&self) -> impl Iterator<Item = &GlobalState<P>> {
        (0..self.platform.nr_cpu_ids()).map(|cpu| &self.host.arch_state(CpuId::new(cpu)).global)
    }

    /// From where a free one is looked for.
    fn next(&self) -> &P::AtomicUsize {
        &self.host.arch_state(CpuId::new(0)).global.next
    }

    /// An ASID under which nothing is cached anywhere; none if all are in use.
    fn allocate(&self) -> Option<Tag> {
        self.find().or_else(|| {
            let recycled = self.recycle();
            recycled.then(|| self.find()).flatten()
        })
    }

    /// One that nobody has had since the last flush of everything.
    fn find(&self) -> Option<Tag> {
        let is_free = |&n: &usize| {
            let (share, bit) = self.share(n);
            share.used.load(Relaxed) & bit == 0
        };
        let n = (self.next().load(Relaxed)..self.len()).find(is_free)?;
        let (share, bit) = self.share(n);
        share.used.store(share.used.load(Relaxed) | bit, Relaxed);
        self.next().store(n + 1, Relaxed);
        Some(Tag(SLOTS + 1 + n))
    }

    /// Makes those free that were freed. Says whether there are any.
    ///
    /// First all is flushed everywhere. Of users' translations nothing should be left: the last mmput has flushed by the ASID
    /// after it had unmapped everything, so a litmus test in which this flush was left out found nothing. But the pool need not
    /// rely on that, and nobody else drops what hardware has cached of the kernel's half under the ASID.
    fn recycle(&self) -> bool {
        let recycled = |share: &GlobalState<P>| S::recycled(share.used.load(Relaxed), share.freed.load(Relaxed));
        if self.shares().all(|share| recycled(share) == 0) {
            return false;
        }
        self.platform.invlpgb_all();
        self.platform.tlbsync();
        for share in self.shares() {
            share.used.store(share.used.load(Relaxed) & !recycled(share), Relaxed);
            share.freed.store(0, Relaxed);
        }
        self.next().store(0, Relaxed);
        true
    }

    /// Its mm is gone. It may be cached under still.
    fn free(&self, asid: Tag) {
        let (share, bit) = self.share(asid.0 - SLOTS - 1);
        share.freed.store(share.freed.load(Relaxed) | bit, Relaxed);
    }
}
