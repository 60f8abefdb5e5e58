//! Calls to other CPUs: the platform only kicks, everything else is here.
//!
//! Each CPU has one outgoing call and an inbox. A caller writes its call (which mm, what to do, who still has to
//! answer), sets its own bit in the inbox of each target, kicks them, and waits until all have answered. A target takes
//! its whole inbox at once, does what each caller asks, and answers by clearing its bit in that caller's mask. So the
//! scheme needs no queue and no allocation, any number of CPUs may call at once, and platforms whose interrupts carry
//! no data and return no completion fit (the shape is that of Linux `smp_call_function_many`, without its queue).
//!
//! | pair | writer | reader |
//! | --- | --- | --- |
//! | `smp.post` | stores the call; RMW on the inbox (full) | takes the inbox (full); reads the call |
//! | `smp.ack` | does the work; clears its bit (release) | sees the bit cleared (acquire); goes on |

use core::fmt;
use core::ptr::null_mut;

use crate::cpumask::{Among, CpuId, CpuMask};
use crate::memory::{AtomicWord, Label, Labelled, Ordering::*};
use crate::mm::{MmCore, MmPtr};
use crate::platform::{IrqsOff, Platform, PreemptGuard, Warning};

/// The RMW with which a caller posts its call to a target's inbox. Full barrier: the call, and whatever the caller did
/// before it (page-table writes, a last decrement), come first.
pub const POST: Label = Label::new("smp.post");
/// The swap with which a target takes its inbox. Full barrier: an interrupt is one on most hardware, but a polled
/// request is not.
pub const TAKE: Label = Label::new("smp.take");
/// A target's answer (release) and the caller's wait for it (acquire).
pub const ACK: Label = Label::new("smp.ack");

/// What a target is asked to do with an mm.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum Call {
    /// Do what [`MmSwitch::flush_ipi`](crate::mm_switch::MmSwitch::flush_ipi) says.
    Flush = 0,
    /// As [`Call::Flush`], and page tables are about to be freed.
    FlushFreedTables = 1,
    /// Stop borrowing it.
    Evict = 2,
    /// Warn if it is still borrowed.
    CheckGone = 3,
    /// Stop borrowing whatever is borrowed, if the hardware is on its root.
    EvictByRoot = 4,
    /// Stop borrowing whatever is borrowed, if it has no user. The mm of the call means nothing.
    EvictUnused = 5,
    /// Nothing: to take a call is a full barrier.
    Barrier = 6,
}

const CALLS: [Call; 7] = [
    Call::Flush,
    Call::FlushFreedTables,
    Call::Evict,
    Call::CheckGone,
    Call::EvictByRoot,
    Call::EvictUnused,
    Call::Barrier,
];
/// An mm is aligned to its count's cache line.
const CALL_BITS: usize = 0b111;

impl Call {
    /// Whether it asks to stop borrowing.
    pub const fn evicts(self) -> bool {
        matches!(self, Call::Evict | Call::EvictByRoot | Call::EvictUnused)
    }
}

/// One CPU's call and inbox.
pub struct CallSlot<P: Platform> {
    /// The mm, with the [`Call`] in its low bits.
    call: P::AtomicPtr<MmCore<P>>,
    /// Who has not answered yet.
    pending: CpuMask<P>,
    /// Who calls this CPU.
    inbox: CpuMask<P>,
}

impl<P: Platform> CallSlot<P> {
    /// No call and an empty inbox.
    pub fn new(nr_cpu_ids: usize) -> Self {
        CallSlot {
            call: AtomicWord::new(null_mut()),
            pending: CpuMask::new(nr_cpu_ids),
            inbox: CpuMask::new(nr_cpu_ids),
        }
    }

    /// What its CPU is asking others to do; none if it asks nothing. Relaxed, for those who watch the machine from outside.
    pub fn call(&self) -> Option<Call> {
        let tagged = self.call.load(Relaxed);
        (!tagged.is_null()).then(|| CALLS[tagged.addr() & CALL_BITS])
    }

    /// Whom it asks and has had no answer from, for those who watch the machine from outside.
    pub fn pending(&self) -> &CpuMask<P> {
        &self.pending
    }

    /// From ready parts, all zero; `const`, for statics.
    pub const fn from_parts(call: P::AtomicPtr<MmCore<P>>, pending: CpuMask<P>, inbox: CpuMask<P>) -> Self {
        CallSlot { call, pending, inbox }
    }
}

impl<P: Platform> fmt::Debug for CallSlot<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallSlot").field("pending", &self.pending).field("inbox", &self.inbox).finish_non_exhaustive()
    }
}

/// Asks the online CPUs of `among` for which `is_target` holds, except the calling one, to do `call` with `mm`, and waits
/// for all.
///
/// `slot_of` gives each CPU's slot. Context: interrupts on, preemption may be on. The targets are read after all
/// earlier stores of the caller only if the caller fenced.
pub(crate) fn call_others<'a, P: Platform>(
    platform: P,
    slot_of: impl Fn(CpuId) -> &'a CallSlot<P>,
    among: Among<'_, P>,
    is_target: impl Fn(CpuId) -> bool,
    call: Call,
    mm: &MmCore<P>,
) {
    if !platform.context().may_wait_for_cpus() {
        platform.warn(Warning::WrongContext);
    }
    let _pinned = PreemptGuard::new(platform);
    let me = platform.smp_processor_id();
    let slot = slot_of(me);
    let is_asked = |cpu| platform.outcome_of(|| cpu != me && platform.cpu_online(cpu) && is_target(cpu));
    if !platform.outcome_of(|| slot.pending.assign(among, platform.nr_cpu_ids(), is_asked)) {
        return;
    }
    slot.call.store(MmPtr::from(mm).as_ptr().map_addr(|address| address | call as usize), Relaxed);
    platform.outcome_of(|| {
        for target in slot.pending.cpus(Relaxed) {
            slot_of(target).inbox.set_cpu(me, POST);
        }
    });
    platform.kick(&slot.pending);
    platform.wait_until(|| slot.pending.is_empty(Acquire.at(ACK)).then_some(()));
    // A call that is over names no mm: it may be freed next.
    slot.call.store(null_mut(), Relaxed);
}

/// Serves the calls in this CPU's inbox: `serve` gets each call and its mm.
///
/// Context: the interrupt of [`Platform::kick`], or a poll; interrupts off.
pub(crate) fn serve_calls<'a, P: Platform>(
    irqs_off: &IrqsOff<'_, P>,
    slot_of: impl Fn(CpuId) -> &'a CallSlot<P>,
    serve: impl Fn(Call, MmPtr<P>),
) {
    let me = irqs_off.cpu();
    for caller in slot_of(me).inbox.take(TAKE) {
        let slot = slot_of(caller);
        let tagged = slot.call.load(Relaxed);
        let call = CALLS[tagged.addr() & CALL_BITS];
        if let Some(mm) = MmPtr::new(tagged.map_addr(|address| address & !CALL_BITS)) {
            serve(call, mm);
        }
        slot.pending.clear_cpu(me, Release.at(ACK));
    }
}
