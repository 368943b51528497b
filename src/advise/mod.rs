//! `pgweir init`: from an odoo.conf and PostgreSQL's limits to a configuration, with its arithmetic. Pure: who calls reads and writes.
//!
//! [`ini`] and [`odoo`] read, [`plan`] decides, [`warning`] says what is doubtful, [`render`] and [`sheet`] write. Lanes and their rules come
//! from the shipped config/odoo.toml ([`template`]); only figures, names and places are decided here.

pub mod ini;
pub mod limits;
pub mod odoo;
pub mod place;
pub mod plan;
pub mod render;
pub mod sheet;
pub mod template;
pub mod warning;
