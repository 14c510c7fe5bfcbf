// The one C function. The Rust code is a static library, of which a linker takes only what something refers to: this does.
void mirai_register(void *dll);

void R_init_mirai(void *dll) { mirai_register(dll); }
