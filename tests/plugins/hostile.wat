;; A plugin by hand, without anything that would keep it from doing harm. It is asked about programs and abstains, save that
;; the tests put something else into the place of `(; declarations ;)`, `(; realloc ;)`, `(; configure ;)` and `(; decide ;)`.
(module
  (import "callgate:policy/host@0.1.0" "log" (func $log (param i32 i32 i32)))
  (import "callgate:policy/host@0.1.0" "ancestors" (func $ancestors (param i32)))
  (import "callgate:policy/host@0.1.0" "canonical-path" (func $canonical_path (param i32 i32 i32)))
  (memory (export "memory") 3)
  (table $table 1 funcref)
  (global $next (mut i32) (i32.const 0x10000))
  ;; Set: `realloc` does harm, too.
  (global $wild (mut i32) (i32.const 0))
  (; declarations ;)

  ;; Never frees, but takes from the start when a page is used up: what the host hands over is read before.
  (func (export "cabi_realloc") (param $old i32) (param $old_size i32) (param $align i32) (param $size i32) (result i32)
    (local $at i32)
    (if (global.get $wild) (then (; realloc ;)))
    (local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
    (global.set $next (i32.add (local.get $at) (local.get $size)))
    (if (i32.gt_u (global.get $next) (i32.const 0x28000)) (then (global.set $next (i32.const 0x10000))))
    (local.get $at))

  ;; Two empty strings and no schema.
  (func (export "callgate:policy/policy@0.1.0#describe") (result i32) (i32.const 0x100))

  ;; ok, and bit 0: exec.
  (data (i32.const 0x204) "\01")
  (func (export "callgate:policy/policy@0.1.0#configure") (param i32 i32) (result i32)
    (local $n i32)
    (; configure ;)
    (i32.const 0x200))

  ;; abstain
  (data (i32.const 0x300) "\02")
  ;; deny, with place for: rule, reason, no hint, errno
  (data (i32.const 0x400) "\01\00\00\00" "\00\05\00\00\01\00\00\00" "\00\05\00\00\01\00\00\00" "\00\00\00\00\00\00\00\00\00\00\00\00" "\00\00\00\00")
  (data (i32.const 0x500) "x")
  (func $decide (export "callgate:policy/policy@0.1.0#decide") (param $event i32) (result i32)
    ;; Only the second event, so that it is seen what comes before and after.
    (if (i64.eq (i64.load (local.get $event)) (i64.const 2))
      (then (; decide ;)))
    (i32.const 0x300))
)
