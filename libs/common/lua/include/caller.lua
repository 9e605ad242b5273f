-- Whether a key may be used at all: key, member and account are active, the key has not expired, it may be used from this
-- address, for these models. `key` = {status, expires_at_ms, addresses, models}; returns nothing, or reason, scope, detail.
local function caller_trouble(key, member_id, member_status, account_status, address, models, now)
  if key[1] ~= 'active' then return 'key', 'key', key[1] or 'unknown' end
  if key[2] and key[2] ~= '' and tonumber(key[2]) * 1000 <= now then return 'expired', 'key', key[2] end
  if member_id ~= '' and member_status ~= 'active' then return 'member', 'member', member_status or 'unknown' end
  if account_status ~= 'active' then return 'account', 'account', account_status or 'unknown' end
  if key[3] and key[3] ~= '' then
    local found = false
    for low, high in string.gmatch(key[3], '(%x+)-(%x+)') do
      if low <= address and address <= high then found = true break end
    end
    if not found then return 'address', 'key', address end
  end
  if key[4] and key[4] ~= '' then
    for model in string.gmatch(models, '[^,]+') do
      if not string.find(key[4], ',' .. model .. ',', 1, true) then return 'model', 'key', model end
    end
  end
end
