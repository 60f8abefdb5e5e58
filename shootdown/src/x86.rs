//! x86's flush rules with generations: [`X86_6_12`] and [`X86_6_14`]. What AMD's broadcasts add to the second is in
//! [`x86_broadcast`](crate::x86_broadcast).
//!
//! Each mm counts its flushes: `tlb_gen`. Each CPU has a few slots, one PCID each, and remembers of each slot which mm's
//! translations it holds and up to which generation it has flushed them. So a CPU may miss flushes while it is away, or
//! lazy, and catches up by comparing when it comes back.
//!
//! | | 6.12 | 6.14 |
//! | --- | --- | --- |
//! | a CPU's bit in `mm_cpumask` is set | by each switch to the mm | by a switch to the mm, if it is clear |
//! | and cleared | when its MMU leaves the mm | by a flush that finds the mm not loaded |
//! | a flush interrupts, of the mask | who is not lazy | who is not lazy and has the mm loaded, or is switching |
//! | and one flush in `TRIM` | | who has left the mm as well, to clear its bit |
//! | a flush of freed tables interrupts | everybody | everybody |
//! | a lazy CPU that is interrupted | leaves for `init_mm`, MMU only | the same |
//! | the mask holds | who has the mm loaded | more than that |
//!
//! Under both, the mask loses a lazy CPU whose `active_mm` still names the mm, so
//! [`MaskCoversLazy`](lazytlb_core::platform::MaskCoversLazy) must not be claimed, and a flush ends no borrow.
//!
//! # Orderings
//!
//! | pair | the switching CPU | the flushing CPU |
//! | --- | --- | --- |
//! | L7 | stores [`SWITCHING`], full barrier ([`MASK_SET`] or [`SWITCHING_FENCE`]), reads `tlb_gen` | raises `tlb_gen` ([`TLB_GEN`], full), reads `loaded_mm` |
//! | L7, lazy | clears `is_lazy`, full barrier ([`UNLAZY`]), reads `tlb_gen` | raises `tlb_gen` (full), reads `is_lazy` |
//! | L8 | sets its bit ([`MASK_SET`], full), walks | writes page tables, raises `tlb_gen` (full), reads the mask |
//! | generation | reads `tlb_gen` ([`TLB_GEN_READ`], acquire), flushes, walks | writes page tables, raises `tlb_gen` (full) |
//!
//! So either the flusher sees that the CPU is about to use the mm and interrupts it, or the CPU sees the new generation and
//! flushes by itself.
//!
//! # Sources
//!
//! arch/x86/mm/tlb.c of Linux 6.12 and 6.14. The generations are Lutomirski's (4.14), the lazily kept mask Rik van Riel's
//! (commit 209954cbc7d0), the marker before the read of the generation and its barrier those of commits fea4e317f9e7
//! (CVE-2025-37964) and 83b0177a6c48 (CVE-2025-40174). Departures: Linux 6.12 clears the bit of the mm it leaves before it
//! loads the next root, which leaves a window in which the hardware is on tables that a flush no longer defends (bug C5); here
//! the bit goes after the load, as OpenBSD has it since bug B23. Linux trims by the clock, once a second; here by the number of
//! flushes. Every flush is of the whole mm. There is no paravirtual flush, no user half of page-table isolation.

use core::fmt;
use core::marker::PhantomData;
use core::ptr::{null_mut, without_provenance_mut};

use lazytlb_core::cpumask::CpuId;
use lazytlb_core::memory::{AtomicInt, AtomicWord, Label, Labelled, LocalWord, Ordering::*};
use lazytlb_core::mm::{MmCore, MmPtr, Slot};
use lazytlb_core::mm_switch::{ArchHost, FlushRange, MASK_CLEAR, MASK_SET, MmSwitch};
use lazytlb_core::platform::{IrqsOff, Platform};
use lazytlb_core::tlb::{Tag, TaggedTlb};

/// The store that says that a CPU is switching: it may come to use any mm.
pub const SWITCHING: Label = Label::new("x86.switching");
/// The barrier between that store and the read of `tlb_gen`, where the CPU's bit is set already (pair L7).
pub const SWITCHING_FENCE: Label = Label::new("x86.switching_fence");
/// The barrier between the end of lazy mode and the read of `tlb_gen` (pair L7).
pub const UNLAZY: Label = Label::new("x86.unlazy");
/// A flush raises `tlb_gen`. Full barrier: the page tables are written before, the mask and the CPUs' states are read
/// afterwards (pairs L7 and L8).
pub const TLB_GEN: Label = Label::new("x86.tlb_gen");
/// A CPU reads `tlb_gen` and flushes what is older (acquire): what it walks afterwards is as the flusher has written it, so
/// it need not flush again when the flusher's interrupt comes. x86 orders loads as it is; compilers need to be told.
pub const TLB_GEN_READ: Label = Label::new("x86.tlb_gen_read");
/// A flush reads that a CPU is lazy, and leaves it alone (acquire): what that CPU did as a user before is over when the flusher
/// frees the page. Pairs with the barrier of the switch that made it lazy.
pub const IS_LAZY: Label = Label::new("x86.is_lazy");
/// `loaded_mm` names the mm after its root is loaded (release), so that who reads it finds the MMU there or beyond.
pub const LOADED: Label = Label::new("x86.loaded_mm");

/// x86's rule as of Linux 6.12: an exact mask.
pub type X86_6_12<const SLOTS: usize = 6> = X86<ExactMask, SLOTS>;
/// x86's rule as of Linux 6.14, with the repairs of 2025: a mask that is kept lazily, and a marker for the switch.
///
/// One flush in `TRIM` also interrupts the CPUs that are in the mask and have left the mm. With 1 every flush does: the storm
/// of useless interrupts that a benchmark met between Linux commit 209954cbc7d0 and the trimming once a second.
pub type X86_6_14<const SLOTS: usize = 6, const TRIM: usize = 64> = X86<LazyMask<TRIM>, SLOTS>;

/// [`X86_6_12`], [`X86_6_14`] and [`X86Broadcast`](crate::X86Broadcast); `SLOTS` is how many address spaces a CPU keeps
/// translations of. The hardware has at least as many tags.
#[derive(Clone, Copy, Debug)]
pub struct X86<Steps, const SLOTS: usize>(PhantomData<Steps>);

/// The steps in which the rules differ. A test overrides one of them to see it caught.
pub trait X86Steps<P: TaggedTlb>: 'static {
    /// Whether a CPU stays in the mask when it leaves the mm.
    const KEEPS_BIT: bool;
    /// One flush in so many interrupts everybody in the mask; 0 for none.
    const TRIM_EVERY: usize;

    /// Whether an mm can get an ASID that is the same on all CPUs.
    type Asids: Asids<P>;

    /// Whether a flush leaves lazy CPUs alone. It must not when tables are freed: a lazy CPU's hardware may walk them.
    fn skips_lazy(tables_freed: bool) -> bool {
        !tables_freed
    }

    /// What CPUs know an mm's translations by: a number that no other mm ever has. `init_mm` counts them.
    fn context_id<Global>(_mm: &MmCore<P>, context: &Context<P, Global>, init_mm: &Context<P, Global>) -> usize {
        context.id(init_mm)
    }

    /// Whether a CPU leaves the mask before its MMU leaves the mm. A flush in between does not interrupt it, and its hardware
    /// may walk tables that are freed behind that flush.
    fn leaves_mask_first() -> bool {
        false
    }
}

/// Where the ASIDs of mms come from: from each CPU's slots alone ([`PerCpuAsids`]), or for some mms from a pool that all
/// CPUs share ([`Broadcasting`](crate::x86_broadcast::Broadcasting)).
pub trait Asids<P: TaggedTlb>: 'static {
    /// What a CPU keeps of them. Other CPUs read it.
    type CpuState: Slot;
    /// What an mm keeps of them.
    type MmState: Slot;

    /// Whether there are global ones.
    const HAS_GLOBAL: bool;

    /// The global ASID of the mm whose `tlb_gen` was read as this. Who goes on to walk under it has read it acquire
    /// ([`TLB_GEN_READ`]).
    fn global_asid(tlb_gen: usize) -> Option<Tag>;

    /// The global ASID that a CPU has its mm loaded under: acquire, the MMU is on it or has been since.
    fn loaded(cpu: &Self::CpuState) -> Option<Tag>;

    /// This CPU has loaded an mm, under a global ASID or none: release. Context: interrupts off.
    fn set_loaded(cpu: &Self::CpuState, asid: Option<Tag>);

    /// Flushes an mm that has a global ASID. `tlb_gen` was raised before, a full barrier.
    ///
    /// Context: as for [`MmSwitch::flush_tlb`].
    fn broadcast_tlb_flush<Steps, const SLOTS: usize>(
        host: &impl ArchHost<P>,
        mm: &MmCore<P>,
        asid: Tag,
        tables_freed: bool,
    ) where
        Steps: X86Steps<P, Asids = Self>,
        P: Platform<Arch = X86<Steps, SLOTS>>;

    /// An mm that has no global ASID was flushed: it may be time for one. Context: as for [`MmSwitch::flush_tlb`].
    fn consider_global_asid<Steps, const SLOTS: usize>(host: &impl ArchHost<P>, mm: &MmCore<P>)
    where
        Steps: X86Steps<P, Asids = Self>,
        P: Platform<Arch = X86<Steps, SLOTS>>;

    /// The mm is about to be freed: its global ASID, if it has one, goes back. Context: as for
    /// [`MmSwitch::destroy_context`].
    fn free_global_asid<Steps, const SLOTS: usize>(host: &impl ArchHost<P>, mm: &MmCore<P>)
    where
        Steps: X86Steps<P, Asids = Self>,
        P: Platform<Arch = X86<Steps, SLOTS>>;

    /// This CPU goes offline, on `init_mm` for good. Context: interrupts off.
    fn cpu_going_down(platform: P);
}

/// Each CPU's slots, and nothing else.
#[derive(Clone, Copy, Debug)]
pub struct PerCpuAsids;

impl<P: TaggedTlb> Asids<P> for PerCpuAsids {
    type CpuState = ();
    type MmState = ();

    const HAS_GLOBAL: bool = false;

    fn global_asid(_tlb_gen: usize) -> Option<Tag> {
        None
    }

    fn loaded(_cpu: &()) -> Option<Tag> {
        None
    }

    fn set_loaded(_cpu: &(), _asid: Option<Tag>) {}

    fn broadcast_tlb_flush<Steps, const SLOTS: usize>(_: &impl ArchHost<P>, _: &MmCore<P>, _: Tag, _: bool)
    where
        Steps: X86Steps<P, Asids = Self>,
        P: Platform<Arch = X86<Steps, SLOTS>>,
    {
    }

    fn consider_global_asid<Steps, const SLOTS: usize>(_: &impl ArchHost<P>, _: &MmCore<P>)
    where
        Steps: X86Steps<P, Asids = Self>,
        P: Platform<Arch = X86<Steps, SLOTS>>,
    {
    }

    fn free_global_asid<Steps, const SLOTS: usize>(_: &impl ArchHost<P>, _: &MmCore<P>)
    where
        Steps: X86Steps<P, Asids = Self>,
        P: Platform<Arch = X86<Steps, SLOTS>>,
    {
    }

    fn cpu_going_down(_platform: P) {}
}

/// The mask holds the CPUs that have the mm loaded.
#[derive(Clone, Copy, Debug)]
pub struct ExactMask;

impl<P: TaggedTlb> X86Steps<P> for ExactMask {
    const KEEPS_BIT: bool = false;
    const TRIM_EVERY: usize = 0;

    type Asids = PerCpuAsids;
}

/// The mask holds all that had it loaded, until a flush finds out.
#[derive(Clone, Copy, Debug)]
pub struct LazyMask<const TRIM: usize>;

impl<P: TaggedTlb, const TRIM: usize> X86Steps<P> for LazyMask<TRIM> {
    const KEEPS_BIT: bool = true;
    const TRIM_EVERY: usize = TRIM;

    type Asids = PerCpuAsids;
}

/// [`X86`]'s state in an mm; `Global` is what [`Asids`] keep there.
pub struct Context<P: Platform, Global = ()> {
    /// A number that no other mm ever has, whatever its address; 0 before its first switch. In `init_mm` the last one
    /// that was given out.
    ctx_id: P::AtomicUsize,
    /// How many flushes there have been, from 1; where there are global ASIDs, the mm's is in its upper bits.
    pub(crate) tlb_gen: P::AtomicUsize,
    pub(crate) global: Global,
}

impl<P: Platform, Global> Context<P, Global> {
    /// From ready words, 0 and 1, and what [`Asids`] keep; `const`, for statics.
    pub const fn from_parts(ctx_id: P::AtomicUsize, tlb_gen: P::AtomicUsize, global: Global) -> Self {
        Context { ctx_id, tlb_gen, global }
    }

    /// The mm's number, which it gets when it is asked for the first time. `counter` is `init_mm`'s. Orders nothing.
    pub fn id(&self, counter: &Self) -> usize {
        let id = self.ctx_id.load(Relaxed);
        if id != 0 {
            return id;
        }
        let fresh = counter.ctx_id.fetch_add(1, Relaxed) + 1;
        self.ctx_id.compare_exchange(0, fresh, Relaxed, Relaxed).map_or_else(|other| other, |_| fresh)
    }
}

impl<P: Platform, Global: Slot> Slot for Context<P, Global> {
    fn new() -> Self {
        Context { ctx_id: AtomicWord::new(0), tlb_gen: AtomicWord::new(1), global: Global::new() }
    }

    fn reinit(&self) {
        self.ctx_id.store(0, Relaxed);
        self.tlb_gen.store(1, Relaxed);
        self.global.reinit();
    }
}

impl<P: Platform, Global> fmt::Debug for Context<P, Global> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Context { .. }")
    }
}

/// What the translations of a slot are: whose, and how old they may be.
pub struct Cached<P: Platform> {
    ctx_id: P::LocalUsize,
    tlb_gen: P::LocalUsize,
}

impl<P: Platform> Cached<P> {
    /// Nobody's, from ready words, both 0; `const`, for statics.
    pub const fn from_parts(ctx_id: P::LocalUsize, tlb_gen: P::LocalUsize) -> Self {
        Cached { ctx_id, tlb_gen }
    }
}

impl<P: Platform> fmt::Debug for Cached<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cached { .. }")
    }
}

/// [`X86`]'s state for a CPU; `Global` is what [`Asids`] keep there.
pub struct TlbState<P: Platform, const SLOTS: usize, Global = ()> {
    /// What the MMU is on: an mm, [`switching`], or null before the first switch. Other CPUs read it.
    pub(crate) loaded_mm: P::AtomicPtr<MmCore<P>>,
    /// Whether the CPU holds it lazily. Other CPUs read it.
    pub(crate) is_lazy: P::AtomicUsize,
    /// The slot of `loaded_mm`, unless that is `init_mm` or loaded under a global ASID.
    loaded_slot: P::LocalUsize,
    /// The slot that is used next for an mm that has none.
    next_slot: P::LocalUsize,
    slots: [Cached<P>; SLOTS],
    pub(crate) global: Global,
}

/// What `loaded_mm` holds while the CPU switches: no mm's address.
pub(crate) fn switching<P: Platform>() -> *mut MmCore<P> {
    without_provenance_mut(1)
}

impl<P: Platform, const SLOTS: usize, Global> TlbState<P, SLOTS, Global> {
    /// From ready parts, null and zero; `const`, for statics.
    pub const fn from_parts(
        loaded_mm: P::AtomicPtr<MmCore<P>>,
        is_lazy: P::AtomicUsize,
        loaded_slot: P::LocalUsize,
        next_slot: P::LocalUsize,
        slots: [Cached<P>; SLOTS],
        global: Global,
    ) -> Self {
        TlbState { loaded_mm, is_lazy, loaded_slot, next_slot, slots, global }
    }

    /// The slot for an mm and whether what is cached under it must be dropped: it is another's, or too old.
    fn choose(&self, ctx_id: usize, tlb_gen: usize) -> (usize, bool) {
        if let Some(slot) = self.slots.iter().position(|cached| cached.ctx_id.get() == ctx_id) {
            return (slot, self.slots[slot].tlb_gen.get() < tlb_gen);
        }
        let slot = self.next_slot.get();
        self.next_slot.set((slot + 1) % SLOTS);
        (slot, true)
    }
}

impl<P: Platform, const SLOTS: usize, Global: Slot> Slot for TlbState<P, SLOTS, Global> {
    fn new() -> Self {
        let local = || LocalWord::new(0);
        TlbState {
            loaded_mm: AtomicWord::new(null_mut()),
            is_lazy: AtomicWord::new(0),
            loaded_slot: local(),
            next_slot: local(),
            slots: core::array::from_fn(|_| Cached { ctx_id: local(), tlb_gen: local() }),
            global: Global::new(),
        }
    }

    fn reinit(&self) {
        self.loaded_mm.store(null_mut(), Relaxed);
        self.is_lazy.store(0, Relaxed);
        for word in [&self.loaded_slot, &self.next_slot] {
            word.set(0);
        }
        for cached in &self.slots {
            cached.ctx_id.set(0);
        }
        self.global.reinit();
    }
}

impl<P: Platform, const SLOTS: usize, Global> fmt::Debug for TlbState<P, SLOTS, Global> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlbState { .. }")
    }
}

/// The tag of a slot.
fn tag(slot: usize) -> Tag {
    Tag(slot + 1)
}

/// The architecture's state in an mm.
pub(crate) fn context<P, A, Global>(mm: &MmCore<P>) -> &Context<P, Global>
where
    P: Platform<Arch = A>,
    A: MmSwitch<P, MmState = Context<P, Global>>,
{
    // SAFETY: this is the architecture.
    unsafe { mm.arch() }
}

/// What a CPU keeps of the ASIDs under these steps.
pub(crate) type CpuAsids<P, Steps> = <<Steps as X86Steps<P>>::Asids as Asids<P>>::CpuState;
/// What an mm keeps of the ASIDs under these steps.
pub(crate) type MmAsids<P, Steps> = <<Steps as X86Steps<P>>::Asids as Asids<P>>::MmState;

impl<P: TaggedTlb + Platform<Arch = Self>, Steps: X86Steps<P>, const SLOTS: usize> MmSwitch<P> for X86<Steps, SLOTS> {
    type CpuState = TlbState<P, SLOTS, CpuAsids<P, Steps>>;
    type MmState = Context<P, MmAsids<P, Steps>>;

    /// To another user's mm there is always one: the mask's RMW or [`SWITCHING_FENCE`].
    const SWITCH_MM_IS_BARRIER: bool = true;

    unsafe fn switch_mm_irqs_off(
        host: &impl ArchHost<P>,
        irqs_off: &IrqsOff<'_, P>,
        _prev: MmPtr<P>,
        next: &MmCore<P>,
    ) {
        let (cpu, platform) = (irqs_off.cpu(), irqs_off.platform());
        let this = host.arch_state(cpu);
        let next_ptr = MmPtr::from(next).as_ptr();
        let init_mm = MmPtr::from(host.init_mm()).as_ptr();
        let prev = this.loaded_mm.load(Relaxed);
        let was_lazy = this.is_lazy.load(Relaxed) != 0;
        if was_lazy {
            this.is_lazy.store(0, Relaxed);
        }
        if prev == next_ptr {
            if next_ptr != init_mm {
                stay::<P, Steps, SLOTS>(platform, this, next, was_lazy);
            }
            return;
        }
        let leave_mask = || {
            let prev = MmPtr::new(prev).filter(|prev| !Steps::KEEPS_BIT && prev.as_ptr() != init_mm);
            // SAFETY: the flush that precedes the freeing of an mm's tables takes every CPU of its mask off it
            // (`flush_ipi`), so the mm that this MMU is on, or was until now, has not been freed.
            if let Some(prev) = prev.map(|prev| unsafe { prev.as_ref() }) {
                // SAFETY: this is the architecture.
                unsafe { prev.cpumask_of_arch() }.clear_cpu(cpu, Release.at(MASK_CLEAR));
            }
        };
        if Steps::leaves_mask_first() {
            leave_mask();
        }
        if next_ptr == init_mm {
            // SAFETY: init_mm is never freed, and it maps nothing that could be stale.
            unsafe { platform.load_root_tagged(next.root(), Tag::KERNEL, true) };
        } else {
            this.loaded_mm.store(switching::<P>(), Relaxed.at(SWITCHING));
            if Steps::KEEPS_BIT && next.cpumask().test_cpu(cpu, Relaxed) {
                platform.fence(SeqCst.at(SWITCHING_FENCE));
            } else {
                // SAFETY: this is the architecture.
                unsafe { next.cpumask_of_arch() }.set_cpu(cpu, MASK_SET);
            }
            load_new_mm::<P, Steps, SLOTS>(host, platform, this, next);
        }
        this.loaded_mm.store(next_ptr, Release.at(LOADED));
        if !Steps::leaves_mask_first() {
            leave_mask();
        }
    }

    fn enter_lazy_tlb(host: &impl ArchHost<P>, irqs_off: &IrqsOff<'_, P>, _mm: MmPtr<P>) {
        let this = host.arch_state(irqs_off.cpu());
        if this.loaded_mm.load(Relaxed) != MmPtr::from(host.init_mm()).as_ptr() {
            this.is_lazy.store(1, Relaxed);
        }
    }

    fn flush_tlb(host: &impl ArchHost<P>, mm: &MmCore<P>, _range: FlushRange, tables_freed: bool) {
        let tlb_gen = context(mm).tlb_gen.fetch_add_full(1, TLB_GEN);
        if let Some(asid) = Steps::Asids::global_asid(tlb_gen) {
            return Steps::Asids::broadcast_tlb_flush::<Steps, SLOTS>(host, mm, asid, tables_freed);
        }
        let trims = Steps::TRIM_EVERY != 0 && tlb_gen.is_multiple_of(Steps::TRIM_EVERY);
        host.flush_cpus_if(mm, tables_freed, |cpu| is_target::<P, Steps, SLOTS>(host, cpu, mm, tables_freed, trims));
        Steps::Asids::consider_global_asid::<Steps, SLOTS>(host, mm);
    }

    unsafe fn flush_ipi(host: &impl ArchHost<P>, irqs_off: &IrqsOff<'_, P>, mm: MmPtr<P>, _tables_freed: bool) {
        let this = host.arch_state(irqs_off.cpu());
        // SAFETY: alive, the flusher waits.
        let core = || unsafe { mm.as_ref() };
        if this.loaded_mm.load(Relaxed) != mm.as_ptr() {
            if Steps::KEEPS_BIT {
                // What is cached of the mm here is found too old if the CPU ever comes back to it.
                // SAFETY: this is the architecture.
                unsafe { core().cpumask_of_arch() }.clear_cpu(irqs_off.cpu(), Release.at(MASK_CLEAR));
            }
        } else if this.is_lazy.load(Relaxed) != 0 {
            // leave_mm: the MMU goes, active_mm stays.
            // SAFETY: the caller is the switch path, and init_mm is never freed.
            unsafe { Self::switch_mm_irqs_off(host, irqs_off, mm, host.init_mm()) };
        } else {
            catch_up::<P, Steps, SLOTS>(irqs_off.platform(), this, core());
        }
    }

    fn cpu_going_down(_host: &impl ArchHost<P>, irqs_off: &IrqsOff<'_, P>) {
        Steps::Asids::cpu_going_down(irqs_off.platform());
    }

    fn destroy_context(host: &impl ArchHost<P>, mm: &MmCore<P>) {
        Steps::Asids::free_global_asid::<Steps, SLOTS>(host, mm);
    }
}

/// A CPU's state under these steps.
pub(crate) type CpuStateOf<P, Steps, const SLOTS: usize> = TlbState<P, SLOTS, CpuAsids<P, Steps>>;

/// The MMU goes on to another user's mm. The CPU is in the mask, and has said that it is switching.
fn load_new_mm<P, Steps: X86Steps<P>, const SLOTS: usize>(
    host: &impl ArchHost<P>,
    platform: P,
    this: &CpuStateOf<P, Steps, SLOTS>,
    next: &MmCore<P>,
) where
    P: TaggedTlb + Platform<Arch = X86<Steps, SLOTS>>,
{
    let tlb_gen = context(next).tlb_gen.load(Acquire.at(TLB_GEN_READ));
    let asid = Steps::Asids::global_asid(tlb_gen);
    let (tag, keep) = asid.map_or_else(
        || {
            let ctx_id = Steps::context_id(next, context(next), context(host.init_mm()));
            let (slot, drops) = this.choose(ctx_id, tlb_gen);
            if drops {
                this.slots[slot].ctx_id.set(ctx_id);
                this.slots[slot].tlb_gen.set(tlb_gen);
            }
            this.loaded_slot.set(slot);
            (tag(slot), !drops)
        },
        |asid| (asid, true),
    );
    // SAFETY: `next` lives until the CPU leaves it. What a slot keeps is of this mm, and no older than the generation that
    // was read after the CPU said that it is switching: whoever raises it from here on sees that and interrupts this CPU.
    // What is kept under a global ASID is of this mm, because such an ASID is handed out clean and once, and every flush of
    // the mm since then was a broadcast.
    unsafe { platform.load_root_tagged(next.root(), tag, keep) };
    Steps::Asids::set_loaded(&this.global, asid);
}

/// The MMU stays on the mm that it is on; the CPU may have been lazy, so that flushes may have passed it by, or the mm may
/// have got a global ASID.
fn stay<P, Steps: X86Steps<P>, const SLOTS: usize>(
    platform: P,
    this: &CpuStateOf<P, Steps, SLOTS>,
    mm: &MmCore<P>,
    was_lazy: bool,
) where
    P: TaggedTlb + Platform<Arch = X86<Steps, SLOTS>>,
{
    if Steps::Asids::loaded(&this.global).is_some() {
        // Broadcasts pass nobody by.
        return;
    }
    if was_lazy {
        platform.fence(SeqCst.at(UNLAZY));
    }
    if was_lazy || Steps::Asids::HAS_GLOBAL {
        catch_up::<P, Steps, SLOTS>(platform, this, mm);
    }
}

/// Flushes what the CPU has cached of the mm that is loaded, if it is older than the mm's generation. If the mm has a global
/// ASID, the CPU goes over to that.
///
/// The generation is read first: a flush that raises it later finds the CPU not lazy, and interrupts.
fn catch_up<P, Steps: X86Steps<P>, const SLOTS: usize>(platform: P, this: &CpuStateOf<P, Steps, SLOTS>, mm: &MmCore<P>)
where
    P: TaggedTlb + Platform<Arch = X86<Steps, SLOTS>>,
{
    if Steps::Asids::loaded(&this.global).is_some() {
        return;
    }
    let tlb_gen = context(mm).tlb_gen.load(Acquire.at(TLB_GEN_READ));
    if let Some(asid) = Steps::Asids::global_asid(tlb_gen) {
        // SAFETY: the mm is loaded, so it lives until the CPU leaves it. What is kept: as in `load_new_mm`.
        unsafe { platform.load_root_tagged(mm.root(), asid, true) };
        return Steps::Asids::set_loaded(&this.global, Some(asid));
    }
    let slot = this.loaded_slot.get();
    if this.slots[slot].tlb_gen.get() != tlb_gen {
        this.slots[slot].tlb_gen.set(tlb_gen);
        platform.flush_tag_local(tag(slot));
    }
}

/// Whether a CPU of the mask has to hear of a flush. `tlb_gen` was raised before.
fn is_target<P, Steps: X86Steps<P>, const SLOTS: usize>(
    host: &impl ArchHost<P>,
    cpu: CpuId,
    mm: &MmCore<P>,
    tables_freed: bool,
    trims: bool,
) -> bool
where
    P: TaggedTlb + Platform<Arch = X86<Steps, SLOTS>>,
{
    let state = host.arch_state(cpu);
    if Steps::skips_lazy(tables_freed) && state.is_lazy.load(Acquire.at(IS_LAZY)) != 0 {
        return false;
    }
    if tables_freed || trims || !Steps::KEEPS_BIT {
        return true;
    }
    let loaded = state.loaded_mm.load(Relaxed);
    loaded == MmPtr::from(mm).as_ptr() || loaded == switching::<P>()
}
