package demo

import (
	"os"
	"strconv"
	"strings"
)

// peakMemory returns the most memory that this process has had resident, in
// bytes; false where the system does not say (it is Linux that does). getrusage
// would count that of the process which started this one.
func peakMemory() (uint64, bool) {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 54)
			return kib << 10, err == nil
		}
	}
	return 0, false
}
