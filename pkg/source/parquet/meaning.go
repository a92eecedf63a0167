package parquet

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math"
	"math/big"
	"strconv"
	"time"
)

// sense is what the bytes of a column stand for, where their physical type does
// not say it.
type sense uint8

const (
	plain sense = iota
	unsigned
	decimal
	date
	timeOfDay
	timestamp
	uuid
	half
	opaque // what has no text
)

// meaning is the logical type of a column.
type meaning struct {
	sense sense
	scale int64         // of decimal: digits behind the point
	unit  time.Duration // of timestamp and timeOfDay
	local bool          // timestamp without a zone
}

// convert takes the older form (ConvertedType).
func (m *meaning) convert(kind int64) {
	switch kind {
	case 5:
		m.sense = decimal
	case 6:
		m.sense = date
	case 7, 8:
		m.sense, m.unit = timeOfDay, unitOf(kind-6)
	case 9, 10:
		m.sense, m.unit = timestamp, unitOf(kind-8)
	case 11, 12, 13, 14:
		m.sense = unsigned
	case 20, 21: // BSON, INTERVAL
		m.sense = opaque
	}
}

// unitOf returns the unit of its number in the union TimeUnit.
func unitOf(n int64) time.Duration {
	switch n {
	case 1:
		return time.Millisecond
	case 2:
		return time.Microsecond
	}
	return time.Nanosecond
}

// logical takes the newer form (LogicalType), which outranks the older.
func (m *meaning) logical(c *cursor, kind byte) {
	c.fields(kind, func(id int64, kind byte) {
		switch id {
		case 5:
			m.sense = decimal
			c.fields(kind, func(id int64, kind byte) {
				if id == 1 {
					m.scale = c.int(kind)
				} else {
					c.skip(kind)
				}
			})
		case 6:
			m.sense = date
			c.skip(kind)
		case 7, 8:
			m.sense = timeOfDay
			if id == 8 {
				m.sense = timestamp
			}
			m.clock(c, kind)
		case 10:
			c.fields(kind, func(id int64, kind byte) {
				if id == 2 && kind == typeFalse {
					m.sense = unsigned
				}
				c.skip(kind)
			})
		case 13, 16, 17, 18: // BSON, VARIANT, GEOMETRY, GEOGRAPHY
			m.sense = opaque
			c.skip(kind)
		case 14:
			m.sense = uuid
			c.skip(kind)
		case 15:
			m.sense = half
			c.skip(kind)
		default:
			c.skip(kind)
		}
	})
}

// clock reads what Time and Timestamp say of themselves.
func (m *meaning) clock(c *cursor, kind byte) {
	m.unit = time.Nanosecond
	c.fields(kind, func(id int64, kind byte) {
		switch id {
		case 1:
			m.local = kind == typeFalse
			c.skip(kind)
		case 2:
			c.fields(kind, func(id int64, kind byte) {
				m.unit = unitOf(id)
				c.skip(kind)
			})
		default:
			c.skip(kind)
		}
	})
}

var errRange = errors.New("a time in it is out of range")

// text appends raw, which is of the physical type, as people write it.
func (m *meaning) text(dst, raw []byte, physical int64) ([]byte, error) {
	switch physical {
	case int32s:
		return m.integer(dst, int64(int32(binary.LittleEndian.Uint32(raw))), 32) //nolint:gosec // two's complement
	case int64s:
		return m.integer(dst, int64(binary.LittleEndian.Uint64(raw)), 64) //nolint:gosec // two's complement
	case int96s: // nanoseconds of a day, and the day by the Julian calendar
		const julianEpoch = 2_440_588
		day := int64(binary.LittleEndian.Uint32(raw[8:])) - julianEpoch
		nanos := int64(binary.LittleEndian.Uint64(raw)) //nolint:gosec // two's complement
		return instant(dst, time.Unix(day*24*60*60, nanos), false)
	case floats:
		return float(dst, float64(math.Float32frombits(binary.LittleEndian.Uint32(raw))), 32), nil
	case doubles:
		return float(dst, math.Float64frombits(binary.LittleEndian.Uint64(raw)), 64), nil
	}
	switch m.sense {
	case decimal:
		return m.decimal(dst, signed(raw)), nil
	case uuid:
		if len(raw) != 16 {
			return dst, errors.New("a UUID in it has not 16 bytes")
		}
		for i, part := range [][]byte{raw[:4], raw[4:6], raw[6:8], raw[8:10], raw[10:]} {
			if i > 0 {
				dst = append(dst, '-')
			}
			dst = hex.AppendEncode(dst, part)
		}
		return dst, nil
	}
	return append(dst, raw...), nil
}

// integer appends what a number of so many bits stands for.
func (m *meaning) integer(dst []byte, v int64, width int) ([]byte, error) {
	switch m.sense {
	case unsigned:
		if width == 32 {
			v &= math.MaxUint32
		}
		return strconv.AppendUint(dst, uint64(v), 10), nil //nolint:gosec // as said
	case decimal:
		return m.decimal(dst, big.NewInt(v)), nil
	case date:
		t := time.Unix(v*24*60*60, 0).UTC()
		if !printable(t) {
			return dst, errRange
		}
		return t.AppendFormat(dst, time.DateOnly), nil
	case timeOfDay:
		if v < 0 || v > int64(24*time.Hour/m.unit) {
			return dst, errRange
		}
		return time.Unix(0, 0).UTC().Add(time.Duration(v)*m.unit).AppendFormat(dst, "15:04:05.999999999"), nil
	case timestamp:
		perSecond := int64(time.Second / m.unit)
		seconds, rest := v/perSecond, v%perSecond
		return instant(dst, time.Unix(seconds, rest*int64(m.unit)), m.local)
	}
	return strconv.AppendInt(dst, v, 10), nil
}

// printable reports whether the year of t has four digits.
func printable(t time.Time) bool { return t.Year() >= 0 && t.Year() <= 9999 }

func instant(dst []byte, t time.Time, local bool) ([]byte, error) {
	t = t.UTC()
	if !printable(t) {
		return dst, errRange
	}
	if local {
		return t.AppendFormat(dst, "2006-01-02T15:04:05.999999999"), nil
	}
	return t.AppendFormat(dst, time.RFC3339Nano), nil
}

// float appends a number as JSON has it; what is none is nothing.
func float(dst []byte, v float64, width int) []byte {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return dst
	}
	if v == math.Trunc(v) && math.Abs(v) < 1e15 {
		return strconv.AppendFloat(dst, v, 'f', -1, width)
	}
	return strconv.AppendFloat(dst, v, 'g', -1, width)
}

// decimal appends v with its point.
func (m *meaning) decimal(dst []byte, v *big.Int) []byte {
	digits := new(big.Int).Abs(v).String()
	if v.Sign() < 0 {
		dst = append(dst, '-')
	}
	const most = 76 // digits that any system has
	scale := int(min(max(m.scale, 0), most))
	for len(digits) <= scale {
		digits = "0" + digits
	}
	dst = append(dst, digits[:len(digits)-scale]...)
	if scale > 0 {
		dst = append(append(dst, '.'), digits[len(digits)-scale:]...)
	}
	return dst
}

// signed reads a big-endian number in two's complement.
func signed(raw []byte) *big.Int {
	const most = 32 // bytes of 76 digits
	v := new(big.Int).SetBytes(raw[max(0, len(raw)-most):])
	if len(raw) > 0 && raw[0]&0x80 != 0 {
		v.Sub(v, new(big.Int).Lsh(big.NewInt(1), uint(min(len(raw), most))*8)) //nolint:gosec // not negative
	}
	return v
}

// number reports whether the text of a column is a number.
func (m *meaning) number(physical int64) bool {
	switch m.sense {
	case plain:
		return physical != boolean && physical != int96s && physical != byteArrays && physical != fixedBytes
	case unsigned, decimal:
		return true
	}
	return false
}
