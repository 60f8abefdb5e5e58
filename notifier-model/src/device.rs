//! Devices: what each translates by, what its TLB has, and what is known of its driver from outside.

use core::ops::RangeInclusive;
use core::panic::Location;

use lazytlb_core::memory::{AtomicInt, AtomicWord, Ordering::*};
use lazytlb_machine::{Kind, Machine, SimLocal, SimWord};
use lazytlb_mmu_notifier::rmap::RmapNode;
use lazytlb_mmu_notifier::{IntervalNode, Invalidation, Node};

use crate::devices;
use crate::kernel::{LabNotifier, Lock, locals, shared, this_task, world};
use crate::memory::{DIRTY, PageHead, Pages, User, WRITABLE, frame};
use crate::names::{Client, Mutant};
use crate::program::{self, Program};
use crate::rules::Invariant;

/// What a driver has tried to do for an address that its device cannot translate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// The device can translate it now.
    Mapped,
    /// Nothing is there to map.
    Nothing,
    /// It has changed meanwhile.
    Again,
}

/// How a driver is subscribed.
pub(crate) enum Subscription {
    /// To the whole address space.
    List(&'static Node<LabNotifier>),
    /// To its entries.
    Interval(&'static IntervalNode<LabNotifier>),
    /// To all pages.
    Rmap(&'static RmapNode<LabNotifier, PageHead>),
}

/// A driver, as the rest of the kernel sees it. It stands in memory that can be freed.
pub(crate) trait Driver {
    /// Where it is subscribed.
    fn subscription(&'static self) -> Subscription;

    /// Tries once to map an entry.
    fn fault(&self, device: &Device, entry: usize) -> Fault;

    /// Its region is moved to these entries.
    fn moves(&self, _: &Device, _: RangeInclusive<usize>) {
        unreachable!("the language lets no others be moved");
    }

    /// It is about to unsubscribe. Nothing is to be done where it is released then.
    fn closes(&self) {}

    /// Its memory is freed.
    fn free(&'static self, machine: &Machine);
}

/// A device.
pub(crate) struct Device {
    index: usize,
    pub(crate) entries: RangeInclusive<usize>,
    client: Client,
    pub(crate) driver: &'static dyn Driver,
    /// The tables that its driver keeps, and it translates by: a page for each entry, and whether it may be written.
    sptes: &'static [SimWord<usize>],
    /// What it has of them in its TLB, and which of the pages it has written.
    tlb: &'static [SimWord<usize>],
    /// Where it has a cache: the page that it has written through each entry, and what it wrote is not in.
    cache: &'static [SimWord<usize>],
    /// Where it walks the CPUs' tables: 1 while it knows where the lowest one is.
    table: &'static SimWord<usize>,
    /// How many users it has, from before it is subscribed until it no longer is.
    subscribed: &'static SimWord<usize>,
    /// 1 when unsubscribing is over: no callback runs.
    gone: &'static SimWord<usize>,
    /// How many invalidations it was told of that go on.
    started: &'static SimWord<usize>,
    /// 1 when it was released.
    released: &'static SimWord<usize>,
    /// Whether each task's last lookup was told to be current, with the driver's lock held since.
    tested: &'static [SimLocal<usize>],
}

impl Device {
    pub(crate) fn place(machine: &Machine, program: &Program, index: usize) -> Device {
        let program::Device { client, ref entries, subscribed, cached, ref mapped, .. } = program.devices[index];
        let one = |name| &shared(machine, name, 1)[0];
        let device = Device {
            index,
            entries: entries.clone(),
            client,
            driver: devices::place(machine, client, index),
            sptes: shared(machine, "spte", program.ptes.len()),
            tlb: shared(machine, "device_tlb", program.ptes.len()),
            cache: shared(machine, "cache", if cached { program.ptes.len() } else { 0 }),
            table: one("walk_cache"),
            subscribed: one("subscribed"),
            gone: one("gone"),
            started: one("started"),
            released: one("released"),
            tested: locals(machine, "tested", program.tasks.len()),
        };
        device.subscribed.poke(usize::from(subscribed));
        for &entry in mapped {
            let value = program.mapped.iter().find(|(one, _)| *one == entry);
            assert!(value.is_some(), "a device maps what is mapped");
            device.sptes[entry].poke(1);
        }
        device
    }

    /// What it maps at the start is what the page table has there.
    pub(crate) fn boot(&self, pages: &Pages) {
        for (spte, entry) in self.sptes.iter().zip(pages.entries).filter(|(spte, _)| spte.peek() != 0) {
            spte.poke(entry.peek());
            if self.client == Client::Rmap {
                pages.head_of(entry.peek()).expect("it maps a page").boot_exported();
            }
        }
    }

    /// Whether it is, or is about to be, subscribed to the address space. Part of a step.
    pub(crate) fn is_subscribed(&self, machine: &Machine) -> bool {
        machine.look(self.subscribed) != 0 && self.client != Client::Rmap
    }

    /// It is about to subscribe, or has unsubscribed.
    pub(crate) fn set_subscribed(&self, subscribed: bool) {
        self.subscribed.store(usize::from(subscribed), Relaxed);
        self.gone.store(usize::from(!subscribed), Relaxed);
    }

    /// It has one more user.
    pub(crate) fn is_got(&self) {
        self.subscribed.fetch_add(1, Relaxed);
    }

    /// A user is about to be given back: with the last one it is in no list, and callbacks may still run.
    pub(crate) fn is_put(&self) {
        Machine::with(|machine| {
            machine.agent_step(|| machine.put(self.subscribed, machine.look(self.subscribed).saturating_sub(1)));
        });
    }

    /// Whether a translation of it leads to a page. Not a step.
    pub(crate) fn leads_to(&self, page: usize) -> bool {
        let leads = |word: &SimWord<usize>| frame(word.load(Relaxed)) == page;
        Machine::with(|machine| machine.inspect(|| self.sptes.iter().chain(self.tlb).any(leads)))
    }

    /// Whether it knows where the table is. Not a step.
    pub(crate) fn knows_table(&self) -> bool {
        Machine::with(|machine| machine.inspect(|| self.table.load(Relaxed) != 0))
    }

    /// What the CPUs' page table has, as a driver looks it up.
    pub(crate) fn look_up(&self, entry: usize) -> usize {
        world().pages.entries[entry].load(Acquire)
    }

    /// The driver knows, with its lock held, that what it has looked up is still so.
    pub(crate) fn is_current(&self, lock: &Lock) {
        self.tested[this_task()].poke(usize::from(lock.is_mine()));
    }

    /// The driver releases its lock: what it knew then may have changed.
    pub(crate) fn unlock(&self, lock: &Lock) {
        self.tested[this_task()].poke(0);
        lock.unlock();
    }

    /// The driver stores a translation.
    #[track_caller]
    pub(crate) fn install(&self, entry: usize, value: usize) {
        let is_invalidated = Machine::with(|machine| {
            machine.agent_step(|| {
                machine.put(&self.sptes[entry], value);
                world().pages.is_invalidated(machine, entry)
            })
        });
        // Who holds a reference to what it maps until the end has its own rule.
        if is_invalidated && self.client != Client::Pins {
            Invariant::I2.broken(&raw const self.sptes[entry]);
        }
        if self.tested[this_task()].peek() == 0 {
            Invariant::I13.broken(&raw const self.sptes[entry]);
        }
    }

    /// The driver clears translations, and the device's TLB is flushed of them: two steps each.
    pub(crate) fn zap(&self, entries: impl Iterator<Item = usize> + Clone) {
        for entry in entries.clone() {
            self.sptes[entry].store(0, Relaxed);
        }
        if !world().has(Mutant::NoTlbFlush) {
            self.flush_tlb(entries);
        }
    }

    /// What it maps of an entry, as its driver sees it.
    pub(crate) fn spte(&self, entry: usize) -> usize {
        self.sptes[entry].load(Relaxed)
    }

    /// Its TLB is flushed, and what was written through it is said of the pages: in time, as they are still mapped.
    pub(crate) fn flush_tlb(&self, entries: impl Iterator<Item = usize>) {
        Machine::with(|machine| {
            machine.agent_step(|| {
                for entry in entries {
                    let value = machine.look(&self.tlb[entry]);
                    if value & DIRTY != 0 && !world().has(Mutant::ForgetsDirty) {
                        world().pages.set_page_dirty(machine, value);
                    }
                    machine.put(&self.tlb[entry], 0);
                    if !world().has(Mutant::NoWriteBack) {
                        self.writes_back(machine, entry);
                    }
                }
                machine.put(self.table, 0);
            });
        });
    }

    /// It writes the page that it translates an entry to: into its cache, if it has one. Part of a step.
    fn stores(&self, machine: &Machine, entry: usize, value: usize) {
        let (pages, user) = (&world().pages, User::Device(self.index));
        match self.cache.get(entry) {
            Some(line) => {
                if machine.look(line) != frame(value) {
                    self.writes_back(machine, entry);
                }
                machine.put(line, frame(value));
            }
            None => pages.is_written(machine, value, user),
        }
        pages.is_to_be_found(machine, entry, value, user);
    }

    /// What it has written through an entry is in the page now. Part of a step.
    fn writes_back(&self, machine: &Machine, entry: usize) {
        let Some(line) = self.cache.get(entry) else { return };
        let value = machine.look(line);
        if value != 0 {
            machine.put(line, 0);
            world().pages.is_written(machine, value, User::Device(self.index));
        }
    }

    /// The entries of an invalidation that it has.
    pub(crate) fn entries_of(&self, start: usize, last: usize) -> impl Iterator<Item = usize> + Clone + use<> {
        start.max(*self.entries.start())..=last.min(*self.entries.end())
    }

    /// The same.
    pub(crate) fn hit_by(&self, invalidation: Invalidation<'_>) -> impl Iterator<Item = usize> + Clone + use<> {
        self.entries_of(invalidation.range().start(), invalidation.range().last())
    }

    /// It uses its translation of an entry, if it has one: one step.
    #[track_caller]
    pub(crate) fn access(&self, entry: usize, writes: bool) {
        let at = Location::caller();
        let pages = &world().pages;
        let is_late = Machine::with(|machine| {
            machine.agent_step(|| {
                let current = machine.look(&pages.entries[entry]);
                let mut value = machine.look(&self.tlb[entry]);
                if value == 0 {
                    let walks = self.client == Client::Sva && machine.look(self.released) == 0;
                    value =
                        if walks { pages.walk(machine, entry, self.table) } else { machine.look(&self.sptes[entry]) };
                    machine.put(&self.tlb[entry], value);
                }
                if value == 0 || (writes && value & WRITABLE == 0) {
                    return false;
                }
                let is_read_only = current != 0 && current & WRITABLE == 0;
                if writes && is_read_only && !pages.is_invalidated(machine, entry) {
                    machine.fail(Kind::StaleTranslation, "a device writes what is read-only");
                }
                if writes {
                    machine.put(&self.tlb[entry], value | DIRTY);
                }
                pages.use_page(machine, value, at);
                if writes {
                    self.stores(machine, entry, value);
                }
                current != 0 && frame(current) != frame(value)
            })
        });
        if is_late {
            Invariant::I3.broken(&raw const self.tlb[entry]);
        }
    }

    /// Planted: the driver gives the device a page by its address, past all translations.
    #[track_caller]
    pub(crate) fn uses(&self, value: usize) {
        let at = Location::caller();
        Machine::with(|machine| {
            machine.agent_step(|| {
                world().pages.use_page(machine, value, at);
            });
        });
    }

    /// A callback begins.
    #[track_caller]
    pub(crate) fn is_called(&self) {
        if self.gone.load(Relaxed) != 0 {
            Invariant::I5.broken(&raw const *self.gone);
        }
    }

    /// It is told of a start.
    #[track_caller]
    pub(crate) fn starts(&self) {
        self.is_called();
        Machine::with(|machine| machine.agent_step(|| machine.put(self.started, machine.look(self.started) + 1)));
    }

    /// It is told of an end.
    #[track_caller]
    pub(crate) fn ends(&self) {
        self.is_called();
        let started = Machine::with(|machine| {
            machine.agent_step(|| {
                let started = machine.look(self.started);
                machine.put(self.started, started.saturating_sub(1));
                started
            })
        });
        if started == 0 {
            Invariant::I4.broken(&raw const *self.started);
        }
    }

    /// It was released.
    pub(crate) fn is_released(&self) {
        self.released.store(1, Release);
    }

    /// Whether it has been. Not a step.
    pub(crate) fn has_released(&self) -> bool {
        Machine::with(|machine| machine.inspect(|| self.released.load(Relaxed) != 0))
    }

    /// All scripts are over, and hardware writes its cache back.
    pub(crate) fn ends_cache(&self, machine: &Machine) {
        for line in self.cache.iter().filter(|line| line.peek() != 0) {
            world().pages.is_written_at_end(machine, line.peek(), User::Device(self.index));
        }
    }

    /// What must be so when all scripts are over.
    pub(crate) fn check_end(&self, machine: &Machine) {
        // Who was released has nothing more to hold off, and is told of no end.
        let pages = &world().pages;
        for (cached, current) in self.tlb.iter().zip(pages.entries).map(|(cached, entry)| (cached.peek(), entry.peek()))
        {
            // The entry may be written, so there is nothing for a handler to mend, and the device faults again.
            let is_upgraded = frame(cached) == frame(current) && current & WRITABLE > cached & WRITABLE;
            if self.client == Client::Sva && cached != 0 && is_upgraded {
                Invariant::I16.fails(machine);
            }
        }
        if self.started.peek() != 0 && self.subscribed.peek() != 0 && self.released.peek() == 0 {
            Invariant::I4.fails(machine);
        }
    }

    /// What it translates to, in words.
    pub(crate) fn facts(&self, machine: &Machine, program: &Program) -> Vec<String> {
        let name = &program.devices[self.index].name;
        let pages = &world().pages;
        let word = |word: &SimWord<usize>| pages.name_of(machine, program, word.peek());
        let of_entry = |entry: usize| {
            let pte = &program.ptes[entry];
            let tables = (self.client != Client::Sva).then(|| format!("maps {}, ", word(&self.sptes[entry])));
            format!("{name}: {pte} {}its TLB has {}", tables.unwrap_or_default(), word(&self.tlb[entry]))
        };
        self.entries.clone().map(of_entry).collect()
    }
}
