# objects.sh COMPILER ARGUMENTS... SOURCE, as make calls it: compiles, but what Verilator links to every model only once.
# Objects of sources in $VERILATOR_ROOT/include are kept in $OBJECTS, by compiler, arguments and what is compiled.
for source in "$@"; do :; done
object="$(basename "$source" .cpp).o"
case "$source" in
"$VERILATOR_ROOT"/include/*) ;;
*) exec "$@" ;;
esac
kept="$OBJECTS/$({ echo "$@"; "$1" -v 2>&1; cat "$source" "$VERILATOR_ROOT/include/verilated_config.h"; } | cksum | tr " " -).o"
cp "$kept" "$object" 2>/dev/null && exit
"$@" || exit
mkdir -p "$OBJECTS" 2>/dev/null && cp "$object" "$kept.$$" 2>/dev/null && mv "$kept.$$" "$kept" 2>/dev/null || rm -f "$kept.$$"
