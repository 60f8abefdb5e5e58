//! Enums whose values have names in files, on the command line and in reports.

/// Declares an enum with a name for each value: `ALL`, `name`, and how it is printed and read.
#[macro_export]
macro_rules! names {
    ($(#[$doc:meta])* $type:ident, $what:literal { $($(#[$one_doc:meta])* $name:ident $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum $type {
            $($(#[$one_doc])* $name,)*
        }

        impl $type {
            /// All of them.
            pub const ALL: &'static [$type] = &[$($type::$name,)*];

            /// Its name in files and on the command line.
            pub const fn name(self) -> &'static str {
                match self {
                    $($type::$name => $text,)*
                }
            }
        }

        impl core::fmt::Display for $type {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.pad(self.name())
            }
        }

        impl core::str::FromStr for $type {
            type Err = String;

            fn from_str(name: &str) -> Result<Self, String> {
                Self::ALL.iter().copied().find(|one| one.name() == name).ok_or_else(|| {
                    let names: Vec<&str> = Self::ALL.iter().map(|one| one.name()).collect();
                    format!(concat!("unknown ", $what, " `{}`; there are: {}"), name, names.join(", "))
                })
            }
        }
    };
}

/// Declares the rules that a program on the machine must keep: each with its number, the title of its report, and what it is broken by.
#[macro_export]
macro_rules! rules {
    ($(#[$doc:meta])* $type:ident { $($name:ident $title:literal $text:literal)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum $type {
            $(#[doc = concat!("Broken where ", $text, ".")] $name,)*
        }

        impl $type {
            /// All of them.
            pub const ALL: &'static [$type] = &[$($type::$name,)*];

            /// What a report of it is headed.
            const fn title(self) -> &'static str {
                match self {
                    $($type::$name => $title,)*
                }
            }

            /// All that is said of it.
            const fn text(self) -> &'static str {
                match self {
                    $($type::$name => concat!(stringify!($name), ": ", $text),)*
                }
            }

            /// Its number.
            pub const fn name(self) -> &'static str {
                match self {
                    $($type::$name => stringify!($name),)*
                }
            }

            /// What a verdict is called: by the rule that it says is broken, or by its kind.
            pub fn name_of(verdict: &$crate::Verdict) -> &'static str {
                let rule = verdict.message.split_once(':').map(|(rule, _)| rule);
                let rule = Self::ALL.iter().find(|one| Some(one.name()) == rule);
                rule.map_or(verdict.kind.name(), |rule| rule.name())
            }

            /// What can be found, by its name: a verdict, or a rule.
            ///
            /// # Errors
            /// If there is nothing of this name.
            pub fn found(name: &str) -> Result<&'static str, String> {
                match Self::ALL.iter().find(|rule| rule.name() == name) {
                    Some(rule) => Ok(rule.name()),
                    None => $crate::text::kind(name).map(|kind| kind.name()).map_err(|error| {
                        let (first, last) = (Self::ALL[0].name(), Self::ALL[Self::ALL.len() - 1].name());
                        format!("{error}, and rules, {first} to {last}")
                    }),
                }
            }

            /// It is broken, by the task that runs; `about` is a word of the machine's. A finding, not an error: what comes of it is to be
            /// seen.
            #[track_caller]
            pub(crate) fn broken<T>(self, about: *const T) {
                let at = core::panic::Location::caller();
                $crate::Machine::with(|machine| {
                    machine.report_finding(self.title(), self.text(), about, at);
                    self.fails(machine);
                });
            }

            /// It is broken, when nothing runs.
            pub(crate) fn fails(self, machine: &$crate::Machine) {
                machine.fail($crate::Kind::Invariant, self.text());
            }
        }

        impl core::fmt::Display for $type {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str(self.text())
            }
        }
    };
}
