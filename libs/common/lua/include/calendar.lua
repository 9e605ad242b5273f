-- Days, weeks (from Monday) and months as an account's time zone has them, counted by whole numbers.
-- `zone` is '' for UTC, else records of 16 characters, 'SSSSSSSSSS+OOOOO': from Unix second S on, local time is O seconds ahead
-- of UTC (libs/common/zones.py writes it).
local function offset_at(zone, second)
  local low, high = 1, #zone / 16
  if high < 1 then return 0 end
  while low < high do
    local middle = math.ceil((low + high) / 2)
    if tonumber(string.sub(zone, middle * 16 - 15, middle * 16 - 6)) <= second then low = middle else high = middle - 1 end
  end
  return tonumber(string.sub(zone, low * 16 - 5, low * 16))
end

-- days since 1970-01-01 -> months since the year 0, and back to the first day (Howard Hinnant, chrono-compatible date algorithms)
local function month_of(day)
  local shifted = day + 719468
  local era = math.floor(shifted / 146097)
  local of_era = shifted - era * 146097
  local year = math.floor((of_era - math.floor(of_era / 1460) + math.floor(of_era / 36524) - math.floor(of_era / 146096)) / 365)
  local of_year = of_era - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  local march_based = math.floor((5 * of_year + 2) / 153)
  local month = march_based < 10 and march_based + 3 or march_based - 9
  return (year + era * 400 + (month <= 2 and 1 or 0)) * 12 + month - 1
end

local function first_day(month_index)
  local year, month = math.floor(month_index / 12), month_index % 12 + 1
  if month <= 2 then year = year - 1 end
  local era = math.floor(year / 400)
  local of_era = year - era * 400
  local of_year = math.floor((153 * ((month + 9) % 12) + 2) / 5)
  return era * 146097 + of_era * 365 + math.floor(of_era / 4) - math.floor(of_era / 100) + of_year - 719468
end

-- {day, week, month} that hold a Unix second
local function periods_at(zone, second)
  local day = math.floor((second + offset_at(zone, second)) / 86400)
  return {day, math.floor((day + 3) / 7), month_of(day)}
end

-- the Unix second at which period number `kind` (1 day, 2 week, 3 month) with this index ends
local function period_end(zone, kind, index)
  local day = index + 1
  if kind == 2 then day = (index + 1) * 7 - 3 elseif kind == 3 then day = first_day(index + 1) end
  local guess = day * 86400 - offset_at(zone, day * 86400)
  return day * 86400 - offset_at(zone, guess)
end

-- What a scope has spent, by period: 'day spent week spent month spent' -> {{day, spent}, {week, spent}, {month, spent}}
local function read_used(packed)
  local used, values = {}, {}
  for value in string.gmatch(packed or '', '%-?%d+') do values[#values + 1] = tonumber(value) end
  for kind = 1, 3 do used[kind] = {values[kind * 2 - 1] or 0, values[kind * 2] or 0} end
  return used
end
