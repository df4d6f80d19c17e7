//! Template files, from which guests are started.

#![no_main]

use fuzz::file::{self, TemplateFile};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|template: TemplateFile| {
    file::template(&template);
});
