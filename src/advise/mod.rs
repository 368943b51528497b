//! What a configuration should be. Pure: who calls reads and writes.
//!
//! `pgweir init`: from an odoo.conf and PostgreSQL's limits to a configuration, with its arithmetic. [`ini`] and [`odoo`] read, [`plan`]
//! decides, [`warning`] says what is doubtful, [`render`] and [`sheet`] write. Lanes and their rules come from the shipped
//! config/odoo.toml ([`template`]); only figures, names and places are decided here.
//!
//! `pgweir suggest`: from a week of what was really used to other figures. [`peaks`] keeps what was seen, [`seen`] sums it up, [`suggest`]
//! decides, with [`share`] and [`threshold`]; [`letter`] tells, [`edit`] writes.

pub mod edit;
pub mod ini;
pub mod letter;
pub mod limits;
pub mod odoo;
pub mod peaks;
pub mod place;
pub mod plan;
pub mod render;
pub mod seen;
pub mod share;
pub mod sheet;
pub mod suggest;
pub mod template;
pub mod threshold;
pub mod warning;
