//! [`Arm64`]: invalidations are broadcast, and ASIDs are handed out anew when they run out.

use core::fmt;
use core::marker::PhantomData;

use lazytlb_core::cpumask::CpuId;
use lazytlb_core::memory::{AtomicWord, Label, Labelled, Ordering::*};
use lazytlb_core::mm::{MmCore, MmPtr, Slot};
use lazytlb_core::mm_switch::{ArchHost, FLUSH, FlushRange, MASK_SET, MmSwitch};
use lazytlb_core::platform::{IrqsOff, Platform};
use lazytlb_core::tlb::{BroadcastTags, Tag};

/// A flush broadcasts by ASID and interrupts nobody. There are fewer ASIDs than address spaces: they are handed out in
/// order, and when they are used up a new *generation* begins (*rollover*).
///
/// * An mm's *context* is its generation and its ASID. A context of an older generation is worth nothing: the mm gets a new
///   one when it is switched to.
/// * At a rollover the ASIDs that CPUs are on are *reserved*: a CPU may go on running an mm, or hold it lazily and speculate
///   with it, without a switch. The mm of a reserved ASID keeps it in the new generation, and nobody else gets it. So a
///   CPU that comes back from lazy mode to the mm that it is on has nothing to check, and a flush by the mm's ASID
///   reaches it.
/// * All other ASIDs are handed out anew. What a CPU has cached under them is dropped before that CPU runs anything of the
///   new generation.
/// * `mm_cpumask` has a CPU's bit from its first switch to the mm for the mm's whole life: it covers `active_mm`, and
///   [`MaskCoversLazy`](lazytlb_core::platform::MaskCoversLazy) holds. A flush ends no borrow. (Linux does not keep the mask
///   on arm64; eviction strategies need something to aim at.)
///
/// [`TaggedTlb::nr_tags`](lazytlb_core::tlb::TaggedTlb::nr_tags) must be more than the number of CPUs, or all ASIDs could be
/// reserved at once.
///
/// # Orderings
///
/// | the switching CPU | the other side |
/// | --- | --- |
/// | reads the generation, exchanges its `active` from what it was ([`ACTIVE`]) | rollover: raises the generation, takes `active` away ([`RESERVE`]) |
/// | stores the mm's new context, full barrier ([`NEW_CONTEXT`]), walks | a flush: writes page tables, full barrier ([`FLUSH`]), reads the context |
///
/// By the first, a switch that has not seen the rollover finds that its `active` was taken and goes the slow way, behind the
/// pool's lock ([`POOL`]). It is enough that both change one word: nothing here needs more order of them. By the second, a flush
/// that used the old context has its page-table writes seen by whoever walks under the new one.
///
/// Sources: arch/arm64/mm/context.c (Will Deacon's allocator; Linux commit b5466f8728527 brought it to ARM). Departures: an mm
/// does not try to get its former ASID back unless it is reserved, and a CPU's `active` is not cleared when it goes to
/// `init_mm`, as there.
pub type Arm64 = AsidRule<Reserving>;

/// [`Arm64`], with the steps that a test can override.
pub struct AsidRule<Steps>(PhantomData<Steps>);

impl<Steps> fmt::Debug for AsidRule<Steps> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AsidRule")
    }
}

/// Rollover takes a CPU's `active` context away.
pub const RESERVE: Label = Label::new("arm64.reserve");
/// A switch puts its context in the place of the CPU's former one.
pub const ACTIVE: Label = Label::new("arm64.active");
/// The barrier between the store of a new context and the first walk under it.
pub const NEW_CONTEXT: Label = Label::new("arm64.new_context");
/// The lock of the pool: acquire and release.
pub const POOL: Label = Label::new("arm64.pool");

/// The steps in which such rules have gone wrong before. A test overrides one of them to see it caught.
pub trait AsidSteps: 'static {
    /// At a rollover, keeps what a CPU is on for the new generation.
    fn reserve<P: Platform>(cpu: &AsidState<P>) {
        match cpu.active.swap_full(0, RESERVE) {
            // It has not switched since the last rollover.
            0 => {}
            active => cpu.reserved.store(active, Relaxed),
        }
    }

    /// Whether an mm whose context is of one generation may go on with it in another.
    fn is_current(of_context: usize, generation: usize) -> bool {
        of_context == generation
    }

    /// Whether an ASID can be handed out.
    fn is_free(is_reserved: bool) -> bool {
        !is_reserved
    }

    /// An mm keeps its reserved ASID: what the CPU is on has a new name.
    fn renew<P: Platform>(cpu: &AsidState<P>, context: usize) {
        cpu.reserved.store(context, Relaxed);
    }

    /// A CPU must drop its translations before it runs anything of the new generation.
    fn make_flush<P: Platform>(cpu: &AsidState<P>) {
        cpu.flush_pending.store(1, Relaxed);
    }

    /// A CPU that goes offline drops its translations: no broadcast reaches it until it is back, and the ASIDs of its last mms
    /// may be good then still. (Linux drops them on the way up.)
    fn go_down<P: Platform>(platform: P) {
        platform.flush_tlb_local();
    }

    /// The context by which an mm is flushed: the one that it has now, whatever the flushing CPU is on.
    fn context_to_flush<P>(host: &impl ArchHost<P>, mm: &AsidContext<P>) -> usize
    where
        P: Platform,
        P::Arch: MmSwitch<P, CpuState = AsidState<P>>,
    {
        let _ = host;
        mm.context.load(Relaxed)
    }
}

/// The steps as they must be.
#[derive(Clone, Copy, Debug)]
pub struct Reserving;

impl AsidSteps for Reserving {}

/// [`Arm64`]'s state in an mm.
pub struct AsidContext<P: Platform> {
    /// Generation and ASID; 0 if it never had one.
    context: P::AtomicUsize,
}

impl<P: Platform> AsidContext<P> {
    /// From a ready word, zero; `const`, for statics.
    pub const fn from_parts(context: P::AtomicUsize) -> Self {
        AsidContext { context }
    }
}

impl<P: Platform> Slot for AsidContext<P> {
    fn new() -> Self {
        AsidContext { context: AtomicWord::new(0) }
    }

    fn reinit(&self) {
        self.context.store(0, Relaxed);
    }
}

impl<P: Platform> fmt::Debug for AsidContext<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AsidContext { .. }")
    }
}

/// [`Arm64`]'s state for a CPU. That of CPU 0 has the pool, which all share.
pub struct AsidState<P: Platform> {
    /// The context that the CPU switched to last; 0 since a rollover has reserved it.
    active: P::AtomicUsize,
    /// What the CPU was on at the last rollover that found it on something. Under the lock.
    reserved: P::AtomicUsize,
    /// Whether the CPU must drop its translations before it runs anything of this generation. Under the lock.
    flush_pending: P::AtomicUsize,
    pool: Pool<P>,
}

/// The ASIDs that are left of this generation.
struct Pool<P: Platform> {
    lock: P::AtomicUsize,
    /// From 1.
    generation: P::AtomicUsize,
    /// How many ASIDs of this generation have been looked at.
    used: P::AtomicUsize,
}

impl<P: Platform> AsidState<P> {
    /// From ready words: the pool's generation is 1, all else zero; `const`, for statics.
    pub const fn from_parts(
        active: P::AtomicUsize,
        reserved: P::AtomicUsize,
        flush_pending: P::AtomicUsize,
        lock: P::AtomicUsize,
        generation: P::AtomicUsize,
        used: P::AtomicUsize,
    ) -> Self {
        AsidState { active, reserved, flush_pending, pool: Pool { lock, generation, used } }
    }

    /// The context that the CPU switched to last, whatever has become of it since.
    pub fn active(&self) -> usize {
        self.active.load(Relaxed)
    }
}

impl<P: Platform> Slot for AsidState<P> {
    fn new() -> Self {
        let word = || AtomicWord::new(0);
        Self::from_parts(word(), word(), word(), word(), AtomicWord::new(1), word())
    }

    fn reinit(&self) {
        for word in [&self.active, &self.reserved, &self.flush_pending, &self.pool.used] {
            word.store(0, Relaxed);
        }
        self.pool.generation.store(1, Relaxed);
    }
}

impl<P: Platform> fmt::Debug for AsidState<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AsidState { .. }")
    }
}

/// How contexts are written: `generation * (nr_tags + 1) + ASID`.
#[derive(Clone, Copy)]
struct Numbers {
    nr_tags: usize,
}

impl Numbers {
    fn context(self, generation: usize, asid: usize) -> usize {
        generation * (self.nr_tags + 1) + asid
    }

    fn generation(self, context: usize) -> usize {
        context / (self.nr_tags + 1)
    }

    fn asid(self, context: usize) -> usize {
        context % (self.nr_tags + 1)
    }
}

/// What a new context is taken from: all CPUs' states, the pool's lock held.
struct Allocator<'a, P, H, Steps> {
    host: &'a H,
    platform: P,
    numbers: Numbers,
    _steps: PhantomData<Steps>,
}

impl<P, H, Steps> Allocator<'_, P, H, Steps>
where
    P: BroadcastTags + Platform<Arch = AsidRule<Steps>>,
    H: ArchHost<P>,
    Steps: AsidSteps,
{
    fn cpus(&self) -> impl Iterator<Item = &AsidState<P>> {
        (0..self.platform.nr_cpu_ids()).map(|cpu| self.host.arch_state(CpuId::new(cpu)))
    }

    fn pool(&self) -> &Pool<P> {
        &self.host.arch_state(CpuId::new(0)).pool
    }

    /// A context of this generation for an mm whose context is `old`.
    fn new_context(&self, old: usize) -> usize {
        let pool = self.pool();
        let generation = pool.generation.load(Relaxed);
        if old != 0 && self.cpus().any(|cpu| cpu.reserved.load(Relaxed) == old) {
            let renewed = self.numbers.context(generation, self.numbers.asid(old));
            for cpu in self.cpus().filter(|cpu| cpu.reserved.load(Relaxed) == old) {
                Steps::renew(cpu, renewed);
            }
            return renewed;
        }
        loop {
            let asid = pool.used.load(Relaxed) + 1;
            if asid > self.numbers.nr_tags {
                self.roll_over();
                continue;
            }
            pool.used.store(asid, Relaxed);
            let is_reserved = |cpu: &AsidState<P>| self.numbers.asid(cpu.reserved.load(Relaxed)) == asid;
            if Steps::is_free(self.cpus().any(is_reserved)) {
                return self.numbers.context(pool.generation.load(Relaxed), asid);
            }
        }
    }

    /// All ASIDs are used up: a new generation begins.
    fn roll_over(&self) {
        let pool = self.pool();
        pool.generation.store(pool.generation.load(Relaxed) + 1, Relaxed);
        pool.used.store(0, Relaxed);
        for cpu in self.cpus() {
            Steps::reserve(cpu);
            Steps::make_flush(cpu);
        }
    }
}

impl<P: BroadcastTags + Platform<Arch = Self>, Steps: AsidSteps> MmSwitch<P> for AsidRule<Steps> {
    type CpuState = AsidState<P>;
    type MmState = AsidContext<P>;

    const SWITCH_MM_IS_BARRIER: bool = false;

    unsafe fn switch_mm_irqs_off(host: &impl ArchHost<P>, irqs_off: &IrqsOff<'_, P>, prev: MmPtr<P>, next: &MmCore<P>) {
        if prev == MmPtr::from(next) {
            return;
        }
        let (cpu, platform) = (irqs_off.cpu(), irqs_off.platform());
        if MmPtr::from(next) == MmPtr::from(host.init_mm()) {
            // SAFETY: init_mm is never freed, and it maps nothing that could be stale.
            return unsafe { platform.load_root_tagged(next.root(), Tag::KERNEL, true) };
        }
        if !next.cpumask().test_cpu(cpu, Relaxed) {
            // SAFETY: this is the architecture.
            unsafe { next.cpumask_of_arch() }.set_cpu(cpu, MASK_SET);
        }
        let numbers = Numbers { nr_tags: platform.nr_tags() };
        let context = check_context::<P, Steps>(host, irqs_off, next, numbers);
        // SAFETY: `next` lives until the CPU leaves it. Its context is of this generation: what the CPU has under the ASID
        // is the mm's own, and every flush of the mm has reached it.
        unsafe { platform.load_root_tagged(next.root(), Tag(numbers.asid(context)), true) };
    }

    fn enter_lazy_tlb(_host: &impl ArchHost<P>, _irqs_off: &IrqsOff<'_, P>, _mm: MmPtr<P>) {}

    fn flush_tlb(host: &impl ArchHost<P>, mm: &MmCore<P>, _range: FlushRange, _tables_freed: bool) {
        let platform = host.platform();
        platform.fence(SeqCst.at(FLUSH));
        // SAFETY: this is the architecture.
        let context = Steps::context_to_flush(host, unsafe { mm.arch() });
        // Of an mm that never ran nothing is cached.
        if context != 0 {
            let numbers = Numbers { nr_tags: platform.nr_tags() };
            platform.flush_tag_broadcast(Tag(numbers.asid(context)));
        }
    }

    unsafe fn flush_ipi(_host: &impl ArchHost<P>, irqs_off: &IrqsOff<'_, P>, _mm: MmPtr<P>, _tables_freed: bool) {
        irqs_off.platform().flush_tlb_local();
    }

    fn cpu_going_down(_host: &impl ArchHost<P>, irqs_off: &IrqsOff<'_, P>) {
        Steps::go_down(irqs_off.platform());
    }
}

/// Makes sure that the mm has a context of this generation and that this CPU is known to be on it.
fn check_context<P, Steps: AsidSteps>(
    host: &impl ArchHost<P>,
    irqs_off: &IrqsOff<'_, P>,
    mm: &MmCore<P>,
    numbers: Numbers,
) -> usize
where
    P: BroadcastTags + Platform<Arch = AsidRule<Steps>>,
{
    let platform = irqs_off.platform();
    let this = host.arch_state(irqs_off.cpu());
    let allocator = Allocator { host, platform, numbers, _steps: PhantomData::<Steps> };
    let pool = allocator.pool();
    // SAFETY: this is the architecture.
    let word = &unsafe { mm.arch() }.context;

    let context = word.load(Relaxed);
    let active = this.active.load(Relaxed);
    let is_current = |context| Steps::is_current(numbers.generation(context), pool.generation.load(Relaxed));
    if active != 0
        && is_current(context)
        && this.active.compare_exchange(active, context, Relaxed.at(ACTIVE), Relaxed).is_ok()
    {
        return context;
    }

    platform.spin_until(|| pool.lock.compare_exchange(0, 1, Acquire.at(POOL), Relaxed).ok());
    let mut context = word.load(Relaxed);
    let is_new = !is_current(context);
    if is_new {
        context = allocator.new_context(context);
        word.store(context, Relaxed);
    }
    if this.flush_pending.load(Relaxed) != 0 {
        this.flush_pending.store(0, Relaxed);
        platform.flush_tlb_local();
    }
    this.active.store(context, Relaxed);
    pool.lock.store(0, Release.at(POOL));
    if is_new {
        platform.fence(SeqCst.at(NEW_CONTEXT));
    }
    context
}
