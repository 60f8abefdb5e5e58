//! Devices beside the CPUs: the chain of MMU notifiers, and who is subscribed to it. One that mirrors page tables looks up what memory has when nothing is
//! invalidated; one that walks them has a TLB, which is flushed when the kernel says so. What a batch has deferred neither of them sees.

use core::panic::Location;
use core::ptr::NonNull;

use lazytlb_core::memory::{AtomicWord, Memory, Ordering::*};
use lazytlb_machine::{Kind, Machine, ObjectKind, Sim, SimLocal, SimWord};
use lazytlb_mmu_notifier::{
    Chain, Contract, Event, Hazards, Interrupted, Invalidation, Mirror, MmapWrite, MmuNotifier, Node, NotifierKernel,
    NotifierMm, NotifierTask, Range, SharedTables, SpinLock,
};

use crate::hardware::stored;
use crate::kernel::{LabMmu, TABLE, locals, placed, shared, this_task};
use crate::program::Program;

// SAFETY: one of the kernel's; a word for each task; a word that is exchanged, with preemption off.
unsafe impl NotifierKernel for LabMmu {
    type Mm = LabMm;
    type Lock = Lock;
    type WaitQueue = ();
    type Walks = Hazards<LabMmu, 2>;

    fn new_wait_queue() {}
    fn walks(&self) -> &Self::Walks {
        &devices().mm.walks
    }
    fn task(&self) -> &NotifierTask<SimLocal<usize>> {
        &devices().tasks[Machine::try_with(|_| this_task()).unwrap_or(0)]
    }
    fn wait_event<R>(self, (): &(), ready: impl FnMut() -> Option<R>) -> R {
        Sim.spin_until(ready)
    }
    fn wake_up_all(self, (): &()) {}
}

fn devices() -> &'static Devices {
    &LabMmu.kernel().devices
}

/// A spinlock, with preemption off.
pub(crate) struct Lock(SimWord<usize>);

impl Lock {
    fn take(&self) {
        Machine::try_with(Machine::preempt_disable);
        Sim.spin_until(|| self.0.compare_exchange(0, 1, Acquire, Relaxed).ok());
    }

    fn release(&self) {
        self.0.store(0, Release);
        Machine::try_with(Machine::preempt_enable);
    }
}

impl SpinLock<LabMmu> for Lock {
    fn new() -> Self {
        Lock(AtomicWord::new(0))
    }
    fn lock(&self, _: LabMmu) {
        self.take();
    }
    unsafe fn unlock(&self, _: LabMmu) {
        self.release();
    }
}

/// The address space.
pub(crate) struct LabMm {
    chain: Chain<LabMmu>,
    walks: Hazards<LabMmu, 2>,
}

// SAFETY: a field.
unsafe impl NotifierMm<LabMmu> for LabMm {
    fn notifiers(&self) -> &Chain<LabMmu> {
        &self.chain
    }
}

/// Its mmap lock, before anything runs.
struct Mmap(&'static LabMm);

// SAFETY: nobody else runs.
unsafe impl MmapWrite<LabMmu> for Mmap {
    fn mm(&self) -> &LabMm {
        self.0
    }
    fn mm_users(&self) -> usize {
        1
    }
    fn mm_take_all_locks(&mut self) -> Result<(), Interrupted> {
        Ok(())
    }
    fn mm_drop_all_locks(&mut self) {}
}

/// A device, and its driver.
struct Device {
    /// Whether it walks the CPUs' tables.
    is_shared: bool,
    /// What it translates by: its driver's table; or its TLB.
    translations: &'static [SimWord<usize>],
    /// The driver's.
    lock: Lock,
    /// How many invalidations go on.
    active: SimWord<usize>,
}

impl Device {
    fn drops(&self, start: usize, last: usize) {
        for word in &self.translations[start..=last.min(TABLE - 1)] {
            word.store(0, Relaxed);
        }
    }

    fn changes_active(&self, change: impl FnOnce(usize) -> usize, then: impl FnOnce()) {
        self.lock.take();
        self.active.store(change(self.active.load(Relaxed)), Release);
        then();
        self.lock.release();
    }
}

impl MmuNotifier<LabMmu> for Device {
    fn release(&self, _: &LabMm) {}
}

impl Mirror<LabMmu> for Device {
    fn invalidate_range_start(&self, _: &LabMm, invalidation: Invalidation<'_>) {
        let range = invalidation.range();
        self.changes_active(|active| active + 1, || self.drops(range.start(), range.last()));
    }
    fn invalidate_range_end(&self, _: &LabMm, _: Invalidation<'_>) {
        self.changes_active(|active| active - 1, || {});
    }
}

impl SharedTables<LabMmu> for Device {
    fn arch_invalidate_secondary_tlbs(&self, _: &LabMm, start: usize, end: usize) {
        self.drops(start, end - 1);
    }
}

/// All devices, and what they are subscribed to.
pub(crate) struct Devices {
    mm: &'static LabMm,
    tasks: &'static [NotifierTask<SimLocal<usize>>],
    devices: &'static [Device],
    nodes: &'static [Node<LabMmu>],
    /// The range that each task invalidates: one more than the first entry, and the last; 0 for none.
    ranges: &'static [SimLocal<usize>],
}

impl Devices {
    pub(crate) fn place(machine: &Machine, program: &Program, tasks: usize) -> Devices {
        let tables: Vec<_> = program.devices.iter().map(|_| shared(machine, "device_tlb", TABLE)).collect();
        let device = |index: usize| Device {
            is_shared: program.devices[index].is_shared,
            translations: tables[index],
            lock: Lock::new(),
            active: AtomicWord::new(0),
        };
        let count = program.devices.len();
        let devices = placed(machine.place_slice("device", ObjectKind::Subscriber, count, device));
        let node = |index: usize| {
            let at = NonNull::from(&devices[index]);
            let contract = if devices[index].is_shared { Contract::SharedTables(at) } else { Contract::Mirror(at) };
            // SAFETY: in the arena, which is kept as long as the machine runs.
            unsafe { Node::new(contract) }
        };
        let mm = |_| LabMm { chain: Chain::default(), walks: Hazards::default() };
        Devices {
            mm: &placed(machine.place_slice("mm_struct", ObjectKind::Mm, 1, mm))[0],
            tasks: placed(machine.place_slice("task_struct", ObjectKind::Task, tasks, |_| NotifierTask::default())),
            devices,
            nodes: placed(machine.place_slice("mmu_notifier", ObjectKind::Subscriber, count, node)),
            ranges: locals(machine, "invalidates", tasks),
        }
    }

    /// All of them subscribe, before anything runs.
    pub(crate) fn subscribe(&self) {
        for node in self.nodes {
            // SAFETY: node and mm stay in the arena.
            let registered = unsafe { self.mm.chain.register(LabMmu, &mut Mmap(self.mm), node) };
            registered.expect("it has users, and there are no signals");
        }
    }

    /// A task begins to invalidate entries.
    pub(crate) fn start(&self, task: usize, first: usize, last: usize) {
        self.ranges[task].poke(1 + first * TABLE + last);
        self.mm.chain.invalidate_range_start(LabMmu, self.mm, &range(first, last));
    }

    /// What a task invalidates, if it does.
    pub(crate) fn invalidates(&self, task: usize) -> Option<(usize, usize)> {
        let packed = self.ranges[task].peek().checked_sub(1)?;
        Some((packed / TABLE, packed % TABLE))
    }

    /// It ends.
    pub(crate) fn end(&self, task: usize) {
        if let Some((first, last)) = self.invalidates(task) {
            // SAFETY: `ranges` has it from its start on.
            unsafe { self.mm.chain.invalidate_range_end(LabMmu, self.mm, &range(first, last), true) };
        }
        self.ranges[task].poke(0);
    }

    /// The TLBs are flushed of an entry that walk the same tables.
    pub(crate) fn flush_secondary(&self, entry: usize) {
        self.mm.chain.arch_invalidate_secondary_tlbs(LabMmu, self.mm, entry, entry + 1);
    }

    /// Whether a translation of theirs leads to a page; a look, and no step.
    pub(crate) fn leads_to(&self, page: usize) -> bool {
        let leads = |word: &SimWord<usize>| LabMmu.hardware().page_of(word.load(Relaxed)) == Some(page);
        let mut words = self.devices.iter().flat_map(|device| device.translations);
        Machine::with(|machine| machine.inspect(|| words.any(leads)))
    }

    /// A driver with tables of its own maps an entry: what memory has, when nothing is invalidated.
    fn faults(device: &Device, entry: usize) {
        let (hardware, word) = (LabMmu.hardware(), &device.translations[entry]);
        loop {
            device.lock.take();
            let is_free = device.active.load(Relaxed) == 0;
            if is_free && word.load(Relaxed) == 0 {
                word.store(stored(hardware.entries[entry].load(Relaxed)), Relaxed);
            }
            device.lock.release();
            if is_free {
                return;
            }
            Sim.spin_until(|| (device.active.load(Acquire) == 0).then_some(()));
        }
    }

    /// A device uses an entry, once its driver has mapped it, if it has tables of its own.
    #[track_caller]
    pub(crate) fn uses(&self, device: usize, entry: usize) {
        let (device, hardware, at) = (&self.devices[device], LabMmu.hardware(), Location::caller());
        let word = &device.translations[entry];
        if !device.is_shared {
            Self::faults(device, entry);
        }
        Machine::with(|machine| {
            machine.agent_step(|| {
                let mut value = machine.look(word);
                if value == 0 && device.is_shared {
                    value = stored(machine.look(&hardware.entries[entry]));
                    machine.put(word, value);
                }
                let Some(page) = hardware.page_of(value).map(|page| hardware.pages[page]) else { return };
                // SAFETY: in the arena, allocated or not.
                machine.look(unsafe { page.as_ref() });
                if !machine.is_live(page.as_ptr()) {
                    let name = machine.name_of_ptr(page.as_ptr());
                    machine.report_rule("use-after-free", "Access by a device to page", page.as_ptr(), at);
                    machine.fail(Kind::Dereferences, format!("a device accesses {name}, which is freed"));
                }
            });
        });
    }
}

fn range(first: usize, last: usize) -> Range {
    Range::new(first..last + 1, Event::Clear).expect("the last entry does not come before the first")
}
